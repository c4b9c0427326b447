"""Compatible training of a model that compiles quickly, on 8-px digits."""

import flax.linen as nn
import numpy as np
import pytest
import tiny_runs

from fct_jax import recipes
from fct_jax.errors import UserError
from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.linear import Linear
from fct_jax.models.projection import ProjectionHead
from fct_jax.runtime import sharding
from fct_jax.train.compatible.task import Compatible
from fct_jax.train.loop import train


class FlatModel(nn.Module):
    """Returns ``(logits, embedding)`` of the pixels themselves, through the ordinary head."""

    num_classes: int
    embedding_dim: int = 8
    small_stem: bool = False
    width: int = 64
    dtype: object = np.float32
    remat: bool = False
    has_classifier: bool = True
    last_nonlin: bool = True  # only ResNets use it
    last_stride: int = 2
    normalize_embedding: bool = False

    @nn.compact
    def __call__(self, images, train=False):
        pixels = images.reshape(images.shape[0], -1)
        if self.has_classifier:
            head = ProjectionHead(self.num_classes, self.embedding_dim)
            nn.share_scope(self, head)
            return head(pixels, train)
        embedding = BatchNorm(name="bn")(Linear(self.embedding_dim, name="fc")(pixels), not train)
        return embedding[:, :0], embedding


def config(**changes):
    """Return a config of two epochs of 16 steps."""
    made = recipes.digits_compatible()
    made.model.name = "flat"
    made.preprocessing.size = 8
    made.model.embedding_dim = 8
    made.batch_size = 60
    made.epochs = 2
    made.log_every_steps = 4
    made.optimizer.schedule.warmup_epochs = 1
    made.method = "none"
    return tiny_runs.changed(made, changes)


OLD_DATA, NEW_DATA = "old classes 0.5", "new classes 0.5"


def old_run(folder):
    """Train an old model of five renumbered classes; return the path of its run."""
    train(config(data__subset=OLD_DATA, seed=9), folder / "old")
    return str(folder / "old")


def new_config(old, method="advbct", **changes):
    """Return the config of a new model of all ten classes, compatible with an old run."""
    return config(**{"method": method, "old": old, "data__subset": NEW_DATA, **changes})


def task_of(config):
    return Compatible(config, sharding.make_mesh())


def refused(config, match, tmp_path):
    """Check that a training is refused before anything is written."""
    with pytest.raises(UserError, match=match):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
