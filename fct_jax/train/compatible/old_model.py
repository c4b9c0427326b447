"""Inputs of compatible training from frozen models: embeddings, classifier, class statistics."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fct_jax import losses
from fct_jax.data.lists import read_list
from fct_jax.data.subset import parse_subset
from fct_jax.embed.images import embeddings_of
from fct_jax.embed.statistics import (
    num_known_classes,
    read_statistics,
    write_statistics,
)
from fct_jax.errors import UserError
from fct_jax.frozen.model import Embedder, Transformer, is_model, load_model
from fct_jax.storage.class_statistics import ClassStatistics, class_statistics
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.ids import find_rows, listed
from fct_jax.train.compatible.method import Method


class OldModel(NamedTuple):
    """Constants of the old model; None where the method does not need them.

    Attributes:
      dim: Do, the size of its embeddings.
      fingerprint: the fingerprint of the old space.
      embeddings: (V, N, Do), of the N training images; the views are unflipped and, with V = 2,
        flipped.
      classifier: (C_old, Do), its weights.
      statistics: the statistics of its C_old classes.
      means: (C, Do), the mean unit embedding of the training images of each class.
      credible: (N,) bool, whether an image's old embedding is near the mean of its class.
      teacher: (V, N, Dt), embeddings by the teacher, a new model that was trained alone.
    """

    dim: int
    fingerprint: str | None = None
    embeddings: np.ndarray | None = None
    classifier: np.ndarray | None = None
    statistics: ClassStatistics | None = None
    means: np.ndarray | None = None
    credible: np.ndarray | None = None
    teacher: np.ndarray | None = None


def old_model(config: ConfigDict, method: Method, source) -> OldModel:
    """Load the inputs that a method needs, and check that they fit together.

    Args:
      config: see ``fct_jax.config.compatible``.
      method: the method, whose fields say what it needs.
      source: the new model's training images.

    Raises:
      UserError: if there is no old model, or no classifier where one is needed; if the statistics
        are of another model, other classes or other labels; if an old list has other labels; if
        training images have no old embedding; or if images are cropped at random, for which old
        embeddings cannot be computed in advance.
    """
    if config.preprocessing.train_crop != "none":
        raise UserError(
            f"config.preprocessing.train_crop={config.preprocessing.train_crop}: the old "
            "embeddings of random crops cannot be computed beforehand; compatible training takes "
            "config.preprocessing.train_crop=none, as published"
        )
    views = [None] if not config.preprocessing.flip else [0, 1]
    model = load_model(config.old) if is_model(config.old) else None
    if model is not None and not isinstance(model, Transformer):
        _check_numbering(config, model)
        _check_list(config, model, source)
        dim, num_classes, fingerprint = model.dim, None, model.fingerprint
        if model.classifier is not None:
            num_classes = num_known_classes(model)
    else:
        # Not a run with a backbone: an EmbeddingSet, or an error that tells what was found.
        found = embeddings_of(config.old, "old", config, "train")
        dim, num_classes, fingerprint = found.dim, None, found.fingerprint
        views = [None]
    classifier = statistics = embeddings = None
    if method.classifier:
        if num_classes is None:
            raise UserError(
                f"config.method={config.method} needs the old model's classifier, which "
                f"config.old={config.old} does not have"
            )
        classifier = np.asarray(model.classifier[:num_classes], np.float32)
    if method.statistics:
        _check_labels_beside(config, source)
        statistics = _statistics(config, method.statistics, model, num_classes, fingerprint)
    for what, of in ((classifier, "classifier"), (statistics and statistics.center, "statistics")):
        if what is not None and (len(what) > source.num_classes or what.shape[1] != dim):
            raise UserError(
                f"the old model's {of} has {len(what)} classes of dimension {what.shape[1]}; the "
                f"new data has {source.num_classes} classes, the old embeddings dimension {dim}"
            )
    if method.embeddings or method.means or method.credible:
        sets = [embeddings_of(config.old, "old", config, "train", view=view) for view in views]
        embeddings = _stacked(sets, config, source)
    found = OldModel(dim, fingerprint, embeddings, classifier, statistics)
    if method.means:
        of = class_statistics(embeddings[0], source.labels, source.num_classes)
        found = found._replace(means=np.asarray(of.center, np.float32))
    if method.credible:
        share = config.compatibility.credible_share
        credible, _ = losses.credible_mask(embeddings[0], source.labels, share)
        found = found._replace(credible=credible)
    if method.teacher:
        found = found._replace(teacher=_teacher(config, source))
    return found if method.embeddings else found._replace(embeddings=None)


def _teacher(config: ConfigDict, source) -> np.ndarray:
    """Return the teacher's embeddings (V, N, Dt) of the training images."""
    if not config.teacher:
        raise UserError(
            f"config.method={config.method} needs config.teacher: the run of the new model trained "
            "alone (config.method=none), or its embeddings of the training images"
        )
    views = [None]
    if config.preprocessing.flip and is_model(config.teacher):
        views = [0, 1]
    sets = [embeddings_of(config.teacher, "teacher", config, "train", view=view) for view in views]
    return _stacked(sets, config, source)


def _stacked(sets: list[EmbeddingSet], config: ConfigDict, source) -> np.ndarray:
    return np.stack([_rows_of(found, source, config.data.on_error) for found in sets])


def _check_numbering(config: ConfigDict, model: Embedder) -> None:
    """Raise UserError if old and new data have one name but number their classes differently."""
    old = model.description.get("data", {})
    if old.get("name") != config.data.name:
        return
    numbering = []
    for text in (old.get("subset", ""), config.data.subset):
        subset = parse_subset(text)
        renumbered = subset is not None and subset.by == "classes"
        numbering.append(subset._replace(part="new") if renumbered else None)
    if numbering[0] != numbering[1]:
        raise UserError(
            f"the old model's classes are numbered by data.subset={old.get('subset', '')!r}, "
            f"those of the new data by {config.data.subset!r}; "
            f"set config.data.subset={str(numbering[0] or '')!r}"
        )


def _check_list(config: ConfigDict, model: Embedder, source) -> None:
    """Raise UserError unless the old model's training list has the new list's labels."""
    old = model.description.get("data", {})
    known = old.get("list", "")
    if known in ("", config.data.list) or old.get("subset") or config.data.subset:
        return
    if config.data.name not in ("list", "gldv2") or not _same_images(old, config):
        return
    if not Path(known).is_file():
        return
    lines = read_list(known)
    paths, labels = zip(*((line.path, line.label) for line in lines), strict=True)
    _check_labels(known, np.array(paths), np.array(labels), source)


def _same_images(old: dict, config: ConfigDict) -> bool:
    """Return whether the ids of another ``data`` section name the same images."""
    return all(old.get(key) == config.data[key] for key in ("name", "dir"))


def _check_labels_beside(config: ConfigDict, source) -> None:
    """Check that the embeddings stored with ``config.statistics`` have the new data's labels."""
    folder = Path(config.statistics)
    folder = folder if folder.is_dir() else folder.parent
    if config.statistics and (folder / "vectors.npy").is_file():
        found = EmbeddingSet.read(folder)
        same = _same_images(found.meta.get("data", {}), config)
        if same and found.meta.get("split") == "train" and found.labels is not None:
            _check_labels(folder, found.ids, found.labels, source)


def _check_labels(where, ids: np.ndarray, labels: np.ndarray, source) -> None:
    """Raise UserError unless ids present in both have the same label."""
    rows = find_rows(source.ids, ids)
    known = np.asarray(source.labels)[rows]
    wrong = np.flatnonzero((rows >= 0) & (known != labels))
    if len(wrong):
        i = wrong[0]
        raise UserError(
            f"id {ids[i]} has label {labels[i]} in {where} and {known[i]} in {source.name}"
        )


def _statistics(config, kind, model, num_classes, fingerprint) -> ClassStatistics:
    """Return ``config.statistics``, or those of the old model's training data."""
    where = config.statistics
    if not where:
        if model is None:
            found = EmbeddingSet.read(config.old)
        else:
            of = config.copy_and_resolve_references()
            with of.unlocked():
                of.data = ConfigDict({**config.data.to_dict(), **model.description["data"]})
            found = embeddings_of(config.old, "old", of, "train")
        where = found.name
        write_statistics(where, num_classes, (kind,))
    return read_statistics(where, kind, fingerprint, num_classes)


def _rows_of(found: EmbeddingSet, source, on_error: str) -> np.ndarray:
    """Return the vector (N, Do) float32 of each image of the source, found by its id.

    Images that could not be read have no vector; their rows are zero and never trained on.
    """
    found.check_finite()
    rows = find_rows(found.ids, source.ids)
    missing = rows < 0
    if missing.any() and (missing.all() or on_error != "skip"):
        raise UserError(
            f"{missing.sum()} of {len(rows)} training images have no embedding in {found.name}, "
            f"first {listed(source.ids[missing])}"
        )
    if found.labels is not None:
        _check_labels(found.name, found.ids, found.labels, source)
    vectors = np.asarray(found.vectors, np.float32)[rows]
    vectors[missing] = 0
    return vectors
