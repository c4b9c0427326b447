"""Training an embedding model without labels (SimCLR, ICML 2020).

Two random views of each image go through the model and a projection head; the loss pulls the
projections of one image's views together, and pushes those of different images apart. The model
is exported without the head; its embeddings serve as side information for a transformation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from fct_jax import data, losses
from fct_jax.data.augment import Augmentation, augment
from fct_jax.errors import UserError
from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.linear import Linear
from fct_jax.train.backbone import Backbone
from fct_jax.train.image_batches import image_feed

_VALIDATION_KEY = 0  # every validation sees the views of this key


class Head(nn.Module):
    """Embeddings (N, D) -> projections (N, output_dim): two layers, ReLU between, float32."""

    hidden_dim: int
    output_dim: int

    @nn.compact
    def __call__(self, embedding: jax.Array, train: bool) -> jax.Array:
        hidden = Linear(self.hidden_dim, use_bias=False, name="hidden")(embedding)
        hidden = nn.relu(BatchNorm(name="bn")(hidden, not train))
        return Linear(self.output_dim, use_bias=False, name="output")(hidden)


class SimCLR(Backbone):
    """A backbone without classifier and a projection head; see ``loop.py`` for what a task offers.

    The trained parameters are {"model": …, "head": …}. BatchNorm statistics are taken over both
    views of the global batch together.
    """

    def __init__(self, config: ConfigDict, mesh):
        if config.temperature <= 0:
            raise UserError(f"config.temperature must be above 0, not {config.temperature}")
        self._options = Augmentation.from_dict(config.augmentation)
        self._host_crops = config.preprocessing.train_crop != "none"
        super().__init__(config, mesh)
        self._head = Head(config.head.hidden_dim, config.head.output_dim)
        self._validation_sums = jax.jit(self._evaluate_batch)

    def _model_options(self) -> dict:
        """Return the model's options; labels are not used."""
        return {**super()._model_options(), "has_classifier": False}

    def _make_feed(self):
        return image_feed(
            self._train, self._preprocessing, self._config, self._mesh, **self._crops()
        )

    def _crops(self) -> dict:
        """Return the crops for ``data.batches``; they have no effect if the device crops."""
        return {"crops": 2, "crop_area": self._options.crop_area}

    def init(self, key):
        """Return fresh variables of the model and of the head."""
        model_key, head_key = jax.random.split(key)
        parts = {
            "model": super().init(model_key),
            "head": self._head.init(head_key, jnp.zeros((2, self.dim)), train=False),
        }
        return {
            kind: {name: part[kind] for name, part in parts.items()}
            for kind in ("params", "batch_stats")
        }

    def warm_start(self, variables):
        """Take the weights of ``config.pretrained`` if it is given."""
        model = super().warm_start(self.export(variables))
        return {kind: {**variables[kind], "model": model[kind]} for kind in variables}

    def export(self, variables):
        """Return the model without the head."""
        return {kind: variables[kind]["model"] for kind in variables}

    def loss(self, variables, frozen, batch, step, key, freeze_batch_norm):
        """Return NT-Xent of two random views of each image; the batch's own flip is not used."""
        del frozen, step, freeze_batch_norm
        views = self._views(batch["image"], key)
        (_, embedding), model = self._module.apply(
            self.export(variables), views, train=True, mutable=["batch_stats"]
        )
        projections, head = self._head.apply(
            {kind: variables[kind]["head"] for kind in variables},
            embedding,
            train=True,
            mutable=["batch_stats"],
        )
        loss, accuracy = self._nt_xent(projections)
        batch_stats = {"model": model["batch_stats"], "head": head["batch_stats"]}
        return loss, (batch_stats, {"accuracy": accuracy})

    def _views(self, images, key):
        """Return model inputs (2N, size, size, 3): both views of an image, one after the other.

        In this order each device keeps the views of its own images.
        """
        if images.ndim == 4:  # else (N, 2, size, size, 3): the host has made two crops
            images = jnp.stack([images, images], 1)
        images = images.reshape(-1, *images.shape[2:])
        size = self._preprocessing.size
        flip = self._preprocessing.flip
        views = augment(images, key, self._options, size=size, crop=not self._host_crops, flip=flip)
        return self._preprocessing.on_device(views)

    def _nt_xent(self, projections):
        first, second = projections[::2], projections[1::2]
        return losses.nt_xent(first, second, self._config.temperature, with_accuracy=True)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the names of ``evaluate``'s metrics."""
        return ("loss", "accuracy") if self._validation is not None else ()

    def evaluate(self, variables) -> dict[str, float]:
        """Return loss and accuracy over views of validation images, the same views every time.

        Accuracy is the share of the views whose nearest in the batch is the same image's.
        """
        if self._validation is None:
            return {}
        sums = jnp.zeros(3)
        for batch in data.batches(
            self._validation,
            self._preprocessing,
            batch_size=self._config.batch_size,
            train=False,
            view=0,
            seed=0,
            workers=self._config.data.workers,
            on_error=self._config.data.on_error,
            **self._crops(),
        ):
            sums += self._validation_sums(variables, batch["image"])
        loss, accuracy, count = (float(value) for value in sums)
        return {"loss": loss / count, "accuracy": accuracy / count} if count else {}

    def _evaluate_batch(self, variables, images):
        """Return sums over a batch: loss, accuracy, images."""
        views = self._views(images, jax.random.key(_VALIDATION_KEY))
        embedding = self._module.apply(self.export(variables), views)[1]
        head = {kind: variables[kind]["head"] for kind in variables}
        loss, accuracy = self._nt_xent(self._head.apply(head, embedding, train=False))
        return jnp.stack([loss, accuracy, 1.0]) * len(images)
