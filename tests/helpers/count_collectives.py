"""Print, as JSON, the collectives of a small ResNet's training step on eight devices, each as
[kind, bytes, source], and its convolutions.

python count_collectives.py [extra | half | split]

With `extra`, it adds two that the method does not need; with `half`, the network is two bottlenecks
in bfloat16; with `split`, the model is ArcFace's, with its classifier of 9,350 classes split over
four devices.
"""

import json
import sys

import jax
from jax.sharding import PartitionSpec

from fct_jax.cli.compile import change
from fct_jax.compiling import hlo
from fct_jax.compiling.programs import programs_of
from fct_jax.compiling.stand_ins import USUAL, Given
from fct_jax.models import MODELS
from fct_jax.runtime import sharding
from fct_jax.runtime.config_files import find_config, read_config
from fct_jax.train.backbone import Backbone

DEVICES, CLASSES = 8, 9350
BACKBONE = "digits_backbone_new"


def main(word: str) -> None:
    config = read_config(find_config("digits_compatible" if word == "split" else BACKBONE))
    change(config, ["model.width=4", "preprocessing.size=8", "batch_size=16"])
    if word == "half":
        MODELS["resnet50"][1]["depths"] = (1, 1)
        change(config, ["model.name=resnet50", "compute_dtype=bfloat16"])
    given = USUAL
    if word == "split":
        change(config, ["method=none", "base_loss=arcface_monotonic", "mesh.model=4"])
        given = Given(images=100_000, classes=CLASSES)
    mesh = sharding.make_mesh(model=config.mesh.model)
    assert mesh.size == DEVICES
    if word == "extra":
        add_collectives()
    step = programs_of(config, mesh, given, platform="cpu")[0].lower().compile()
    kinds = (*hlo.COLLECTIVES, "convolution")
    found = [each for each in hlo.instructions(step.as_text()) if each.kind in kinds]
    print(json.dumps([[each.kind, each.size, each.source] for each in found]))


def add_collectives() -> None:
    """Gather the whole batch's labels on every device, and average them; nothing needs either."""
    plain = Backbone.loss

    def loss(self, variables, frozen, batch, *rest):
        labels = jax.lax.with_sharding_constraint(batch["label"] + 1, PartitionSpec())
        mean = jax.shard_map(
            lambda part: jax.lax.pmean(part.astype("float32").mean(), "data"),
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec(),
        )(batch["label"])
        loss, found = plain(self, variables, frozen, batch, *rest)
        return loss + 1e-9 * (labels * labels[::-1]).sum() * mean, found

    Backbone.loss = loss


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "")
