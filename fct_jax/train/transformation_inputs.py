"""Old, new and side embeddings for training a transformation: cached, or computed online."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from fct_jax import data
from fct_jax.embed.images import check_all_paired, embeddings_of, source_config
from fct_jax.errors import UserError
from fct_jax.frozen.model import Embedder, load_model
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.named import is_model, is_run, vectors_of
from fct_jax.train.backbone import has_validation, images_of
from fct_jax.train.feeds import ResidentFeed
from fct_jax.train.image_batches import image_feed, preprocessing_of, sampler_of


def roles(config: ConfigDict) -> tuple[str, ...]:
    """Return the roles that take part; without "side" the old embedding takes its place."""
    return ("old", "new", "side") if config.side else ("old", "new")


def as_bits(array: np.ndarray) -> np.ndarray:
    """Return float32 values as the uint32 in which `view_picker` expects them.

    A TPU multiplies in bfloat16. Of floats, XLA would convert all samples in each call, and keep
    them twice, because it converts before it picks a batch.
    """
    return np.asarray(array, np.float32).view(np.uint32)


def view_picker(views: int):
    """Return the function of a feed that draws a view of each sample.

    It takes ({role: embeddings (V, N, d), `as_bits`}, labels (N,) or None), indices (B,) and a key,
    and returns {role: float32 (B, d), "label": (B,)}.
    """

    def pick(data, indices, key):
        arrays, labels = data
        view = jax.random.randint(key, indices.shape, 0, views)
        batch = {
            role: jax.lax.bitcast_convert_type(bits[view, indices], np.float32)
            for role, bits in arrays.items()
        }
        return batch if labels is None else {**batch, "label": labels[indices]}

    return pick


class CachedInputs:
    """All views of all embeddings on the device; each sample draws a new view in every epoch.

    With random flips, two views reproduce the distribution of recomputed embeddings exactly.

    Attributes:
      feed: batches {"old" (B, do), "new" (B, dn), "side" (B, ds), "label" (B,)}.
      dims: size of the embeddings by role.
      fingerprints: fingerprints of the models by role, None where unknown.
      labels: labels (N,) int32 of the training set, or None.
      models: frozen variables that ``embed`` needs; here there are none.
      summary: a description of the training data for the console.
    """

    def __init__(self, config: ConfigDict, mesh):
        count = _view_count(config)
        check_preprocessing(
            config,
            {role: load_model(config[role]) for role in roles(config) if is_run(config[role])},
        )
        views = [_embeddings(config, "train", view) for view in range(count)]
        for sets in views:
            check_all_paired([views[0]["old"], *sets.values()])
            for found in sets.values():
                found.check_finite()
        self.dims = {role: found.dim for role, found in views[0].items()}
        self.fingerprints = {role: found.fingerprint for role, found in views[0].items()}
        self.labels = _labels(views[0])
        self.models = ()
        arrays = {
            role: np.stack([as_bits(sets[role].vectors) for sets in views]) for role in views[0]
        }

        count = len(views[0]["old"])
        data_name = config.data.name if all(is_model(config[r]) for r in roles(config)) else ""
        self.summary = f"{count:,} cached embeddings" + (
            f" × {len(views)} views ({data_name}, training split)" if data_name else ""
        )
        self.feed = ResidentFeed(
            (arrays, self.labels),
            count,
            view_picker(len(views)),
            sampler=sampler_of(config, None, count, mesh),
            mesh=mesh,
        )

    @staticmethod
    def embed(models, batch):
        """Return the batch, which holds embeddings already."""
        del models
        return batch


class OnlineInputs:
    """Embeddings of freshly augmented images in every step, as the original code trains.

    The attributes are those of ``CachedInputs``; ``models`` holds the frozen models' variables.
    """

    def __init__(self, config: ConfigDict, mesh):
        if not all(is_run(config[role]) for role in roles(config)):
            raise UserError(
                "config.online=True needs runs, not EmbeddingSets or Python functions, "
                "as old, new and side"
            )
        self._embedders: dict[str, Embedder] = {
            role: load_model(config[role]) for role in roles(config)
        }
        check_preprocessing(config, self._embedders)
        source = data.open_source(source_config(config.data, "train"), "train")
        preprocessing = preprocessing_of(config.preprocessing)
        self.feed = image_feed(source, preprocessing, config, mesh)
        self.summary = f"{images_of(source, config.data)}, embedded in every step"
        self.dims = {role: embedder.dim for role, embedder in self._embedders.items()}
        self.fingerprints = {role: e.fingerprint for role, e in self._embedders.items()}
        self.labels = source.labels
        self.models = {role: embedder.needed for role, embedder in self._embedders.items()}

    def embed(self, models, batch):
        """Return {"old", "new", "side", "label"} of a batch of images, inside the step."""
        embeddings = {
            role: embedder.embeddings(models[role], batch["image"], batch["flip"])
            for role, embedder in self._embedders.items()
        }
        return {**embeddings, "label": batch["label"]}


def validation_batch(config: ConfigDict) -> dict[str, np.ndarray] | None:
    """Return validation embeddings {"old" (N, do), …, "label" (N,)}, or None if none are given."""
    names = roles(config)
    if all(is_model(config[role]) for role in names):
        if not has_validation(config.data):
            return None
        sets = _embeddings(config, "validation", None)
    elif all(config[f"validation_{role}"] for role in names):
        sets = {
            role: vectors_of(config[f"validation_{role}"], f"config.validation_{role}")
            for role in names
        }
    else:
        return None
    check_all_paired(list(sets.values()))
    labels = _labels(sets)
    batch = {role: np.asarray(found.vectors, np.float32) for role, found in sets.items()}
    return batch if labels is None else {**batch, "label": labels}


_GEOMETRY = ("size", "width", "resize", "mean", "std")


def check_preprocessing(config: ConfigDict, embedders: dict[str, Embedder]) -> None:
    """Raise UserError if ``config.preprocessing`` contradicts the models' own preprocessing.

    The config chooses only the augmentation, that is ``flip`` and ``train_crop``. The message
    names the key and the model's value.
    """
    given = preprocessing_of(config.preprocessing)
    for key in _GEOMETRY:
        known = {role: getattr(e.preprocessing, key) for role, e in embedders.items()}
        if known and getattr(given, key) not in known.values():
            role, value = next(iter(known.items()))
            raise UserError(
                f"config.preprocessing.{key}={getattr(given, key)!r}, but {config[role]} embeds "
                f"images with {key}={value!r}; set config.preprocessing.{key} to that"
            )


def _embeddings(config: ConfigDict, split: str, view: int | None) -> dict[str, EmbeddingSet]:
    return {
        role: embeddings_of(config[role], role, config, split, view=view) for role in roles(config)
    }


def _view_count(config: ConfigDict) -> int:
    """Return the config's number of views for models, and 1 for EmbeddingSets, which are fixed."""
    models = [is_model(config[role]) for role in roles(config)]
    if any(models) and not all(models):
        for role in roles(config):
            if config[role] and not is_model(config[role]) and not Path(config[role]).exists():
                raise UserError(f"config.{role}={config[role]} does not exist")
        raise UserError("config.old, new and side must be all runs or all EmbeddingSets")
    if config.views < 1:
        raise UserError(f"config.views must be at least 1, not {config.views}")
    return config.views if all(models) else 1


def _labels(sets: dict[str, EmbeddingSet]) -> np.ndarray | None:
    for role in ("new", "old"):
        if sets[role].labels is not None:
            return np.asarray(sets[role].labels, np.int32)
    return None
