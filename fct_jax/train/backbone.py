"""Training an embedding model by classification (METHOD: FCT, CVPR 2022, section 4)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fct_jax import config as configs
from fct_jax import data, losses, models
from fct_jax.data.readers import splits_of
from fct_jax.embed.images import source_config
from fct_jax.errors import UserError
from fct_jax.runtime import plugins, sharding
from fct_jax.train.image_batches import image_feed, preprocessing_of
from fct_jax.train.pretrained import with_pretrained
from fct_jax.train.validation import ranks, validation_batches


class Backbone:
    """A ResNet with label-smoothed cross-entropy; ``loop.py`` describes the methods of a task."""

    def __init__(self, config: ConfigDict, mesh):
        self._config, self._mesh = config, mesh
        self._train = data.open_source(config.data, "train")
        self._validation = validation_source(config.data)
        self._preprocessing = preprocessing_of(config.preprocessing)
        self._kwargs = model_options(config, self._model_options())
        self._module = models.build(config.model.name, **self._kwargs, **run_options(config))
        if plugins.is_import_name(config.model.name):
            _check_own(config.model.name, self._module, self._preprocessing.shape)
        self.feed = self._make_feed()
        self.frozen = ()
        self._correct = jax.jit(self._count_correct, static_argnames="cut")

    def _model_options(self) -> dict:
        """Return the model's options that follow from data and task."""
        return {"num_classes": self._train.num_classes}  # all, also where a subset is trained on

    def _make_feed(self):
        return image_feed(self._train, self._preprocessing, self._config, self._mesh)

    @functools.cached_property
    def dim(self) -> int:
        """Return D, the size of an embedding."""
        return self._dim_of(self._module)

    def _dim_of(self, module) -> int:
        image = jnp.zeros((1, *self._preprocessing.shape, 3))
        shapes = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), image))
        return shapes[0][1].shape[-1]

    def init(self, key):
        """Return fresh variables."""
        return self._module.init(key, jnp.zeros((1, *self._preprocessing.shape, 3)))

    def warm_start(self, variables):
        """Take the weights of ``config.pretrained`` if it is given."""
        return with_pretrained(variables, self._config.pretrained)

    def export(self, variables):
        """Return all variables: the model is exported completely."""
        return variables

    def finish(self, workdir, fingerprint: str, variables) -> None:
        """Do nothing, because this task leaves nothing but the model."""

    def freeze_batch_norm(self, epoch: int) -> bool:
        """Return False: batch statistics are used to the end."""
        del epoch
        return False

    def loss(self, variables, frozen, batch, step, key, freeze_batch_norm):
        """Return the label-smoothed cross-entropy of a batch of images."""
        del frozen, step, key, freeze_batch_norm
        images = self._preprocessing.on_device(batch["image"], batch["flip"])
        (logits, _), new = self._module.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        labels = sharding.for_classes(batch["label"])
        smoothing = self._config.label_smoothing
        loss = losses.label_smoothed_cross_entropy(logits, labels, smoothing).mean()
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        return loss, (new["batch_stats"], {"accuracy": accuracy})

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the names of ``evaluate``'s metrics."""
        return ("loss", "top1", "top5") if self._validation is not None else ()

    def evaluate(self, variables, cut=lambda variables: variables) -> dict[str, float]:
        """Return loss and top-1 and top-5 accuracy over validation images of known classes."""
        if self._validation is None:
            return {}
        sums = jnp.zeros(4)
        for images, labels in validation_batches(
            self._validation, self._preprocessing, self._config, self._mesh
        ):
            with jax.set_mesh(self._mesh):
                sums += self._correct(variables, images, labels, cut=cut)
        loss, top1, top5, count = (float(value) for value in sums)
        return {"loss": loss / count, "top1": top1 / count, "top5": top5 / count} if count else {}

    def _count_correct(self, variables, images, labels, cut):
        """Return sums over a batch: loss, hits of the best and of the five best classes, images."""
        variables, labels = self.export(cut(variables)), sharding.for_classes(labels)
        logits = self._class_scores(variables, self._preprocessing.on_device(images, None))
        # An old model is validated on all classes, and knows only its own.
        known = (labels >= 0) & (labels < logits.shape[-1])
        loss = losses.label_smoothed_cross_entropy(logits, labels, self._config.label_smoothing)
        loss = jnp.where(known, loss, 0.0)
        before = ranks(logits, labels)
        hits = [jnp.sum(known & (before < most)) for most in (1, 5)]
        return jnp.stack([loss.sum(), *hits, known.sum()])

    def _class_scores(self, variables, images):
        """Return logits (N, C) of preprocessed images, in inference mode."""
        return self._module.apply(variables, images)[0]

    def summary(self) -> list[str]:
        """Describe the model and its data, in lines for the console."""
        name = self._config.model.name
        lines = [f"{name} on {images_of(self._train, self._config.data)}"]
        if self._validation is not None:
            lines.append(f"validation: {len(self._validation):,} images")
        return lines

    def describe(self) -> dict:
        """Return the entries of ``model.json``."""
        return {
            "kind": "backbone",
            "name": self._config.model.name,
            "kwargs": self._kwargs,
            "dim": self.dim,
            "preprocessing": self._preprocessing.to_dict(),
            "data": self._config.data.to_dict(),
        }


def model_options(config: ConfigDict, more: dict) -> dict:
    """Return the attributes of the model that ``config.model`` names.

    A model of your own takes those keys of ``config.model`` that it declares.

    Args:
      config: config of a training task.
      more: attributes that follow from the data and the task.

    Raises:
      UserError: if a key that the model does not take was changed.
    """
    given = {key: value for key, value in config.model.items() if key != "name"}
    if not plugins.is_import_name(config.model.name):
        return {**given, **more}
    taken, usual = models.options_of(config.model.name), getattr(configs, config.task)().model
    for key, value in given.items():
        if key not in taken and value != usual[key]:
            raise UserError(
                f"config.model.{key}={value!r}: {config.model.name} has no attribute {key!r}; it "
                f"takes {', '.join(sorted(taken))}"
            )
    return {key: value for key, value in {**given, **more}.items() if key in taken}


def run_options(config: ConfigDict) -> dict:
    """Return the model's computing options; a model of your own without them computes in float32.

    Raises UserError if the config asks such a model for something else.
    """
    wanted = {"dtype": config.compute_dtype, "remat": config.remat}
    if not plugins.is_import_name(config.model.name):
        return wanted
    taken = models.options_of(config.model.name)
    if "dtype" not in taken and config.compute_dtype != "float32":
        raise UserError(
            f"config.compute_dtype={config.compute_dtype}: {config.model.name} has no attribute "
            "'dtype'; set config.compute_dtype=float32"
        )
    if "remat" not in taken and config.remat:
        raise UserError(
            f"config.remat=True: {config.model.name} has no attribute 'remat'; "
            "set config.remat=False"
        )
    return {key: value for key, value in wanted.items() if key in taken}


def _check_own(name: str, module, shape: tuple[int, int]) -> None:
    """Trace a model of the user's own as the export does, with any number of images.

    Raises UserError, with the place, if it fails or returns something else.
    """
    (count,) = jax.export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((count, *shape, 3), jnp.float32)
    try:
        variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, *shape, 3)))
        found = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, images)
    except Exception as error:  # of the user's code: any kind
        raise UserError(f"config.model.name={name} failed: {plugins.brief(error)}") from error
    pair = isinstance(found, tuple) and len(found) == 2
    if not (pair and all(getattr(array, "ndim", 0) == 2 for array in found)):
        raise UserError(
            f"config.model.name={name} must return (logits (N, C), embedding (N, D)), not "
            f"{jax.tree.map(lambda array: array.shape, found)}"
        )


def images_of(source: data.Source, config: ConfigDict) -> str:
    """Describe a source: its numbers of images and classes, and the subset."""
    classes = len(np.unique(source.labels[source.labels >= 0]))
    kept = [f"{key} {config[key]!r}" for key in ("classes", "subset") if config[key]]
    which = f", {' and '.join(kept)}" if kept else ""
    of = f" of {source.num_classes:,}" if classes != source.num_classes else ""
    return f"{len(source):,} images, {classes:,}{of} classes ({source.name}{which})"


def has_validation(config: ConfigDict) -> bool:
    """Return whether the ``data`` section gives a validation split: lists must be named for it."""
    given = config.validation_list or config.name not in ("list", "gldv2")
    return bool(given) and "validation" in splits_of(config.name)


def validation_source(config: ConfigDict) -> data.Source | None:
    """Return the validation split of a data set, or None if it has none or no list is given."""
    if not has_validation(config):
        return None
    return data.open_source(source_config(config, "validation"), "validation")
