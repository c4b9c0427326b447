"""The test sets of a comparison: which vectors they need of a model, and how they are scored."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fct_jax import data
from fct_jax.compare.identity_scoring import faces, persons
from fct_jax.compare.scoring import Row, Score, labelled, landmarks, measure, revisited
from fct_jax.data.ijb import protocol_beside, read_media, read_scores, rows_of
from fct_jax.data.market1501 import parse_names
from fct_jax.data.readers import gldv2_truth, revisited_truth, splits_of
from fct_jax.embed.images import embeddings_of, source_config
from fct_jax.embed.transform import transform_set
from fct_jax.errors import UserError
from fct_jax.evaluate.metrics import read_groups
from fct_jax.frozen.model import load_model
from fct_jax.storage.embedding_set import EmbeddingSet, check_paired


class TestSet(NamedTuple):
    """A score and the splits that it compares; the same split twice: leave-one-out."""

    config: ConfigDict
    score: Score
    query: str
    gallery: str

    @property
    def name(self) -> str:
        """Of the gallery: that of the data set, "ijbc" for IJB-C's files and "ijbb" for IJB-B's."""
        where = self.config.data
        return where.name if where.name != "ijb" else Path(where.list).name.split("_")[0]

    def check_images(self) -> None:
        """Raises UserError where images of the splits are missing."""
        for split in dict.fromkeys((self.query, self.gallery)):
            data.open_source(source_config(self.config.data, split), split)

    def vectors(self, run, split: str) -> EmbeddingSet:
        """The run's embeddings of a split, computed once."""
        found = embeddings_of(str(run), "new", self.config, split)
        found.check_finite()
        if self.config.data.name != "ijb" or not self.config.faces.flip:
            return found
        config = self.config.copy_and_resolve_references()
        config.preprocessing.flip = True
        mirrored = embeddings_of(str(run), "new", config, split, view=1)
        check_paired(found, mirrored)
        mean = (np.asarray(found.vectors) + np.asarray(mirrored.vectors)) / 2
        return dataclasses.replace(found, vectors=mean)


def open_test(config: ConfigDict) -> TestSet:
    """The test set of a config with a ``data`` section.

    "roxford5k" and "rparis6k" are scored by mAP medium, "gldv2" by mAP@100, "market1501" by the
    mAP of its protocol, "ijb" by that of 1:N identification, every data set with a validation split
    by its labels, leave-one-out. ``config.groups`` names groups of the queries (of "ijb": of the
    probe templates) for the gap between groups; without it they are classes, cameras ("market1501")
    or landmarks ("roxford5k", "rparis6k"), and "gldv2" and "ijb" have none.

    Raises:
      UserError: a data set that is none of these, or whose ground truth cannot be read; groups
        that are not one for each query.
    """
    where = config.data
    if where.name in ("roxford5k", "rparis6k"):
        truth = revisited_truth(where.dir, where.name)
        groups = read_groups(config.groups, len(truth.gnd))
        if groups is None:  # query images are called all_souls_000013
            groups = [name.rpartition("_")[0] for name in truth.qimlist]
        return TestSet(config, revisited(truth.gnd, groups=groups), "query", "gallery")
    if where.name == "gldv2":
        positives = gldv2_truth(where.dir).positives
        groups = read_groups(config.groups, len(positives))
        return TestSet(config, landmarks(positives, groups=groups), "query", "gallery")
    if where.name == "market1501":
        return TestSet(config, _persons(config), "query", "gallery")
    if where.name == "ijb":
        return TestSet(config, _faces(config), "gallery", "gallery")
    if "validation" not in splits_of(where.name):
        raise UserError(
            f"data set {where.name!r} cannot be compared on: it has no validation split"
        )
    labels = data.open_source(source_config(where, "validation"), "validation").labels
    groups = read_groups(config.groups, len(labels))
    return TestSet(config, labelled(labels, groups=groups), "validation", "validation")


def _persons(config: ConfigDict) -> Score:
    sides = [
        parse_names(data.open_source(source_config(config.data, split), split).ids)
        for split in ("query", "gallery")
    ]
    (query, query_cameras), (gallery, gallery_cameras) = sides
    groups = read_groups(config.groups, len(query))
    rerank = config.reid.rerank
    return persons(query, gallery, query_cameras, gallery_cameras, rerank=rerank, groups=groups)


def _faces(config: ConfigDict) -> Score:
    where = config.data
    images = data.open_source(source_config(where, "gallery"), "gallery").ids
    media = read_media(where.list)
    pairs, gallery, probe = protocol_beside(where.list)
    options = config.faces
    return faces(
        media,
        rows_of(media, images),
        pairs,
        gallery,
        probe,
        weights=read_scores(options.scores, media.images) if options.scores else None,
        normalize=options.normalize,
        groups=read_groups(config.groups, len(probe.templates)),
    )


def compare(test: TestSet, old_run, runs: dict, transformations: dict, folder) -> dict[str, dict]:
    """``measure`` of runs and transformations on one test set.

    Args:
      test: the test set.
      old_run: run of the old model.
      runs: {row: run of a new model}, searched against the old model's gallery.
      transformations: {row: (run of the new model, run of the transformation)}: the new model
        searches the transformed gallery.
      folder: where transformed galleries are kept.
    """
    old_gallery = test.vectors(old_run, test.gallery)
    old = Row(_array(test.vectors(old_run, test.query)), _array(old_gallery), _array(old_gallery))
    rows = {
        name: Row(
            _array(test.vectors(run, test.query)),
            _array(test.vectors(run, test.gallery)),
            old.gallery,
        )
        for name, run in runs.items()
    }
    for name, (run, transformation) in transformations.items():
        kept = folder / f"{name}-{test.name}"
        if not kept.is_dir():
            transform_set(load_model(transformation), old_gallery, None, kept)
        rows[name] = Row(
            _array(test.vectors(run, test.query)),
            _array(test.vectors(run, test.gallery)),
            _array(EmbeddingSet.read(kept)),
        )
    return measure(test.score, old, rows)


def _array(found: EmbeddingSet) -> np.ndarray:
    return np.asarray(found.vectors, np.float32)
