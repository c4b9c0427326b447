"""Stand-ins for data sets and trained models: their shapes, without their contents."""

from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fct_jax import config as configs
from fct_jax.errors import UserError
from fct_jax.storage.class_statistics import ClassStatistics
from fct_jax.train.compatible.methods import Method
from fct_jax.train.compatible.old_model import OldModel
from fct_jax.train.feeds import ResidentFeed
from fct_jax.train.image_batches import sampler_of
from fct_jax.train.transformation_inputs import view_picker


class Size(NamedTuple):
    """The numbers of training images and classes of a data set."""

    images: int
    classes: int


# data.name -> size of the training set; "list" and "folder" depend on the user's data
SIZES = {
    "digits": Size(1_000, 10),
    "cifar100": Size(50_000, 100),
    "imagenet2012": Size(1_281_167, 1_000),
    "gldv2": Size(1_580_470, 81_313),
    "market1501": Size(12_936, 751),
    "ms1m": Size(5_179_510, 93_431),
}


class Given(NamedTuple):
    """Sizes that a config does not contain; None: the usual one."""

    images: int | None = None
    classes: int | None = None
    old_dim: int | None = None
    new_dim: int | None = None
    side_dim: int | None = None


USUAL = Given()


def size_of(config: ConfigDict, given: Given) -> Size:
    """Return the training set's size. Raises UserError if it must be given."""
    known = SIZES.get(config.data.name)
    if known is None and None in (given.images, given.classes):
        raise UserError(
            f"the size of data.name={config.data.name} is not known: give --images and --classes "
            f"(known: {', '.join(SIZES)})"
        )
    return Size(given.images or known.images, given.classes or known.classes)


def with_noise(config: ConfigDict, size: Size) -> ConfigDict:
    """Return the config with streamed images of noise in place of its data set."""
    config = config.copy_and_resolve_references()
    config.data.name = f"noise:{size.images}x{size.classes}"
    config.data.in_memory = "no"
    config.data.workers = 0
    for key in ("dir", "list", "validation_list"):
        config.data[key] = ""
    return config


class ShapedInputs:
    """Shapes of cached embeddings, with the attributes of `transformation_inputs.CachedInputs`."""

    def __init__(self, config: ConfigDict, mesh, size: Size, given: Given):
        usual = configs.backbone().model.embedding_dim
        self.dims = {"old": given.old_dim or usual, "new": given.new_dim or usual}
        if config.side:
            self.dims["side"] = given.side_dim or usual
        self.fingerprints = dict.fromkeys(self.dims)
        self.labels, self.models, self.summary = None, (), f"{size.images:,} cached embeddings"
        views, images = config.views, size.images
        arrays = {
            role: jax.ShapeDtypeStruct((views, images, dim), np.uint32)
            for role, dim in self.dims.items()
        }
        labels = jax.ShapeDtypeStruct((images,), np.int32)

        sampler = sampler_of(config, None, images, mesh)
        pick = view_picker(views)
        self.feed = ResidentFeed((arrays, labels), images, pick, sampler=sampler, mesh=mesh)

    @staticmethod
    def embed(models, batch):
        """Return the batch, which already holds embeddings."""
        del models
        return batch


def shaped_old_model(config: ConfigDict, method: Method, size: Size, given: Given) -> OldModel:
    """Return the parts of the old model that a compatible method needs, as shapes."""
    own = config.model.embedding_dim
    dim = given.old_dim or (
        own // 2 if method.teacher else own * 4 // 5 if method.old_first else own
    )
    classes, images = size.classes, size.images
    views = 2 if config.preprocessing.flip else 1
    statistics = None
    if method.statistics:
        column = _float32(classes)
        statistics = ClassStatistics(_float32(classes, dim), column, column, column)
        statistics = statistics.replace(kind=method.statistics)
    return OldModel(
        dim,
        embeddings=_float32(views, images, dim) if method.embeddings else None,
        classifier=_float32(classes, dim) if method.classifier else None,
        statistics=statistics,
        means=_float32(classes, dim) if method.means else None,
        credible=jax.ShapeDtypeStruct((images,), np.bool_) if method.credible else None,
        teacher=_float32(views, images, own - dim) if method.teacher else None,
    )


def frozen_classifier(size: Size, dim: int) -> jax.ShapeDtypeStruct:
    """Return the shape of a new model's classifier (C, D)."""
    return _float32(size.classes, dim)


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.float32)
