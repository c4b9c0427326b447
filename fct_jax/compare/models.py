"""The models of a comparison: their vectors, and the form of the old gallery that they search."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fct_jax.compare.measures import SHARES
from fct_jax.compare.report import ALONE, OLD
from fct_jax.compare.scoring import Row, measure
from fct_jax.compare.test_sets import TestSet
from fct_jax.embed.transform import transform_set
from fct_jax.errors import UserError
from fct_jax.frozen.model import Transformer, is_run, load_model, read_description
from fct_jax.storage.embedding_set import EmbeddingSet, check_paired

IDENTITY = "identity"


def rows_of(
    test: TestSet, old, new, models: Mapping[str, object], folder: Path | None = None
) -> tuple[Row, dict[str, Row]]:
    """Return the old model's row on a test set, and {name: row} of the others.

    Args:
      test: the test set.
      old: the old model: a run, "module:function", or vectors.
      new: the new model trained alone, in the same forms, or None. Transformations translate the
        old gallery to its space.
      models: {name: model}: a backward-compatible model's run (of LCE with a transformation of the
        gallery: the run that has it in ``gallery/``), function or vectors; a transformation's run,
        or the directory of a map; "identity", with which ``new`` searches the unchanged old
        gallery.
      folder: directory for transformed galleries; None: they are made in memory.

    Raises:
      UserError: a model that is none of these, or does not match the old one or the test set.
    """
    for name in models:
        if name in (OLD, ALONE):
            raise UserError(f"a model cannot be called {name!r}, because the table has such a row")
    made = _Rows(test, old, new, folder)
    rows = {} if new is None else {ALONE: made.alone()}
    for name, where in models.items():
        rows[name] = made.row(name, where)
    return made.old, rows


def judge(
    test: TestSet,
    old,
    new,
    models: Mapping[str, object],
    folder: Path | None = None,
    *,
    shares=SHARES,
    seed: int = 0,
) -> dict[str, dict]:
    """Return `measure` of all models on one test set, with the arguments of `rows_of`."""
    old_row, rows = rows_of(test, old, new, models, folder)
    return measure(test.score, old_row, rows, shares=shares, seed=seed)


class _Rows:
    """Rows on one test set; shared vectors are read once."""

    def __init__(self, test: TestSet, old, new, folder: Path | None):
        self._test, self._new, self._folder = test, new, folder
        self._kept: dict = {}
        self._old_gallery = self._vectors(old, test.gallery)
        gallery = _array(self._old_gallery)
        self.old = Row(_array(self._vectors(old, test.query)), gallery, gallery)

    def _vectors(self, where, split: str) -> EmbeddingSet:
        key = (str(where) if isinstance(where, str | Path) else id(where), split)
        if key not in self._kept:
            self._kept[key] = self._test.vectors(where, split)
        return self._kept[key]

    def _of_model(self, where) -> tuple[np.ndarray, np.ndarray]:
        gallery = self._vectors(where, self._test.gallery)
        check_paired(self._old_gallery, gallery)
        return _array(self._vectors(where, self._test.query)), _array(gallery)

    def alone(self) -> Row:
        """Return the new model's row; it searches the old vectors if they have its size."""
        query, gallery = self._of_model(self._new)
        fits = query.shape[1] == self.old.gallery.shape[1]
        return Row(query, gallery, self.old.gallery if fits else None)

    def row(self, name: str, where) -> Row:
        """Return the row of a compatible model, or of a transformation with the new model."""
        identity = isinstance(where, str) and where == IDENTITY
        transform = None if identity else _transformation(name, where)
        if transform is None and not identity:
            return Row(*self._of_model(where), self._searched(where))
        model = where if _has_gallery_run(where) else self._new
        if model is None:
            raise UserError(f"{name}={where} translates to a new model's space; name it (new)")
        query, gallery = self._of_model(model)
        if transform is None:
            return Row(query, gallery, self.old.gallery)
        return Row(query, gallery, *self._translated(name, where, transform, model))

    def _searched(self, where) -> np.ndarray:
        """Return the old gallery in the size of a model that begins with the old space (OCA, BT²).

        The cosine of a query with zeros behind an old vector is that with the query's first
        numbers, times a factor that is the same for the whole gallery.
        """
        gallery = self.old.gallery
        if not (isinstance(where, str | Path) and is_run(where)):
            return gallery
        description = read_description(where)
        if not description.get("compatible", {}).get("old_first"):
            return gallery
        missing = description["dim"] - gallery.shape[1]
        return np.pad(gallery, ((0, 0), (0, max(missing, 0))))

    def _translated(self, name: str, where, transform, model):
        old = self._old_gallery
        new = self._vectors(model, self._test.gallery)
        for role, given, trained in (
            ("old", old.fingerprint, transform.old_fingerprint),
            ("new", new.fingerprint, transform.new_fingerprint),
        ):
            if given and trained and given != trained:
                raise UserError(
                    f"{name}={where} was trained with another {role} model ({trained}) than the "
                    f"one that is compared with ({given})"
                )
        if getattr(transform, "needs_side", False):
            raise UserError(
                f"{name}={where} needs side information, which only `fct-jax evaluate` takes"
            )
        if self._folder is None or not isinstance(transform, Transformer):
            vectors, uncertainty = transform.transform(np.asarray(old.vectors, np.float32))
        else:
            kept = self._folder / f"{name}-{self._test.name}"
            if not kept.is_dir():
                transform_set(transform, old, None, kept)
            found = EmbeddingSet.read(kept)
            vectors, uncertainty = found.vectors, found.uncertainty
        return np.asarray(vectors, np.float32), uncertainty


def _has_gallery_run(where) -> bool:
    return isinstance(where, str | Path) and is_run(Path(where) / "gallery")


def _transformation(name: str, where):
    """Return the transformation that a name refers to, or None if it is a model itself."""
    if not isinstance(where, str | Path):
        return None
    if (Path(where) / "map.json").is_file():
        from fct_jax.upgrade.maps.loading import load_map

        found = load_map(where)
        if found.direction != "forward":
            raise UserError(
                f"{name}={where} is a {found.direction} map; only forward ones translate a gallery"
            )
        return found
    if _has_gallery_run(where):
        where = Path(where) / "gallery"
    if not is_run(where):
        return None
    model = load_model(where)
    return model if isinstance(model, Transformer) else None


def _array(found: EmbeddingSet) -> np.ndarray:
    return np.asarray(found.vectors, np.float32)
