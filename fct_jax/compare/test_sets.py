"""The test sets of a comparison: their vectors and their scores.

`KINDS` is the table of data sets that have a score of their own; every other data set with a
validation split is scored by its labels.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fct_jax import data
from fct_jax.compare.scoring import Score, faces, labelled, landmarks, persons, revisited
from fct_jax.data.ijb import protocol_beside, read_media, read_scores, rows_of
from fct_jax.data.market1501 import parse_names
from fct_jax.data.readers import gldv2_truth, revisited_truth, splits_of
from fct_jax.embed.images import embeddings_of, source_config
from fct_jax.errors import UserError
from fct_jax.evaluate.metrics import read_groups
from fct_jax.storage.embedding_set import EmbeddingSet, check_paired
from fct_jax.storage.named import is_model, vectors_of


class TestSet(NamedTuple):
    """A score and the splits that it compares; the same split twice: leave-one-out.

    Attributes:
      config: config with the section ``data``; None: models are given as vectors of its items.
      score: scores a query set and a gallery.
      query, gallery: names of splits.
    """

    config: ConfigDict | None
    score: Score
    query: str = "validation"
    gallery: str = "validation"

    @property
    def name(self) -> str:
        """Return the gallery's name; "ijbb" and "ijbc" are distinguished by their files."""
        if self.config is None:
            return "vectors"
        where = self.config.data
        return where.name if where.name != "ijb" else Path(where.list).name.split("_")[0]

    def check_images(self) -> None:
        """Raise UserError if images of the splits are missing."""
        if self.config is not None:
            for split in dict.fromkeys((self.query, self.gallery)):
                data.open_source(source_config(self.config.data, split), split)

    def vectors(self, where, split: str) -> EmbeddingSet:
        """Return a model's embeddings of a split, computed once, or the given vectors.

        Args:
          where: a run, "module:function", or, if the gallery queries itself, anything that
            `vectors_of` reads.
          split: ``query`` or ``gallery``.
        """
        if self.config is None or not is_model(where):
            if self.query != self.gallery:
                raise UserError(
                    f"{where} holds vectors, but {self.name} has a split of queries and one of the "
                    "gallery: give a run or module:function"
                )
            found = vectors_of(where, "the model")
            found.check_finite()
            return found
        found = embeddings_of(str(where), "new", self.config, split)
        found.check_finite()
        if self.config.data.name != "ijb" or not self.config.faces.flip:
            return found
        config = self.config.copy_and_resolve_references()
        config.preprocessing.flip = True
        mirrored = embeddings_of(str(where), "new", config, split, view=1)
        check_paired(found, mirrored)
        mean = (np.asarray(found.vectors) + np.asarray(mirrored.vectors)) / 2
        return dataclasses.replace(found, vectors=mean)


def open_test(config: ConfigDict) -> TestSet:
    """Return the test set of a config with a ``data`` section.

    "roxford5k" and "rparis6k" are scored by mAP medium, "gldv2" by mAP@100, "market1501" by the
    mAP of its protocol, "ijb" by that of 1:N identification, and every other data set with a
    validation split by its labels, leave-one-out. ``config.groups`` names groups of the queries
    (for "ijb" of the probe templates) for the gap between groups; without it groups are classes,
    cameras ("market1501") or landmarks ("roxford5k", "rparis6k"), and "gldv2" and "ijb" have none.

    Raises:
      UserError: a data set that is none of these, or whose ground truth cannot be read; a number
        of groups that differs from that of the queries.
    """
    return KINDS.get(config.data.name, _by_labels)(config)


def given_vectors(labels) -> TestSet:
    """Return the test set of models that are given as vectors of the same labelled items (N,)."""
    return TestSet(None, labelled(np.asarray(labels)))


def _by_labels(config: ConfigDict) -> TestSet:
    where = config.data
    if "validation" not in splits_of(where.name):
        raise UserError(
            f"data set {where.name!r} cannot be compared on: it has no validation split"
        )
    labels = data.open_source(source_config(where, "validation"), "validation").labels
    return TestSet(config, labelled(labels, groups=read_groups(config.groups, len(labels))))


def _buildings(config: ConfigDict) -> TestSet:
    truth = revisited_truth(config.data.dir, config.data.name)
    groups = read_groups(config.groups, len(truth.gnd))
    if groups is None:  # query images are called all_souls_000013
        groups = [name.rpartition("_")[0] for name in truth.qimlist]
    return TestSet(config, revisited(truth.gnd, groups=groups), "query", "gallery")


def _landmarks(config: ConfigDict) -> TestSet:
    positives = gldv2_truth(config.data.dir).positives
    groups = read_groups(config.groups, len(positives))
    return TestSet(config, landmarks(positives, groups=groups), "query", "gallery")


def _persons(config: ConfigDict) -> TestSet:
    sides = [
        parse_names(data.open_source(source_config(config.data, split), split).ids)
        for split in ("query", "gallery")
    ]
    (query, query_cameras), (gallery, gallery_cameras) = sides
    groups = read_groups(config.groups, len(query))
    rerank = config.reid.rerank
    score = persons(query, gallery, query_cameras, gallery_cameras, rerank=rerank, groups=groups)
    return TestSet(config, score, "query", "gallery")


def _faces(config: ConfigDict) -> TestSet:
    where = config.data
    images = data.open_source(source_config(where, "gallery"), "gallery").ids
    media = read_media(where.list)
    pairs, gallery, probe = protocol_beside(where.list)
    options = config.faces
    score = faces(
        media,
        rows_of(media, images),
        pairs,
        gallery,
        probe,
        weights=read_scores(options.scores, media.images) if options.scores else None,
        normalize=options.normalize,
        groups=read_groups(config.groups, len(probe.templates)),
    )
    return TestSet(config, score, "gallery", "gallery")


# data set: the function that opens its test set
KINDS: dict[str, Callable[[ConfigDict], TestSet]] = {
    "roxford5k": _buildings,
    "rparis6k": _buildings,
    "gldv2": _landmarks,
    "market1501": _persons,
    "ijb": _faces,
}
