"""Judge any set of models in one table, without training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fct_jax import config as configs
from fct_jax.compare.measures import SHARES
from fct_jax.compare.models import judge
from fct_jax.compare.report import Comparison, report_of, write_reports
from fct_jax.compare.test_sets import TestSet, given_vectors, open_test
from fct_jax.errors import UserError
from fct_jax.storage.files import check_free, new_directory
from fct_jax.storage.named import array_of, vectors_of


def compare(
    old,
    models: Mapping[str, object],
    *,
    new=None,
    data: str | Mapping[str, ConfigDict] = "",
    labels=None,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    title: str = "",
    out=None,
) -> Comparison:
    """Compare models in one table: self and cross retrieval, P scores, flips, refresh curves.

    Args:
      old: the old model: a run, "module:function", or vectors of the test items (EmbeddingSet,
        array, ``.npy``, Parquet, …).
      models: {name: model}: runs of backward-compatible models (BCT … AdvBCT), of transformations
        (FCT, FastFill) or directories of maps, functions, or vectors; "identity" is ``new`` with
        the unchanged old gallery.
      new: the new model trained alone, in the same forms: M* of the scores, and the model whose
        space transformations translate to. With None there are no P scores and no transformations.
      data: test sets, "NAME" or "NAME=FOLDER" separated by commas, such as "digits" or
        "roxford5k=/data/roxford5k"; or {name: config with a section ``data``}; "": all models are
        given as vectors.
      labels: (N,) classes of vectors, or a ``.npy`` file; None: those of the old model's set.
      shares: re-embedded shares of the gallery, the points of the curves.
      seed: seed of the random order of re-embedding.
      title: title of the table; "": the names of the test sets.
      out: directory to write the report to; None writes nothing.

    Returns: the `Comparison`; its ``tests`` hold all numbers.

    Raises:
      UserError: no model, an unknown name, or sets that do not match.

    Example:

        compare("runs/old", {"bct": "runs/bct", "fct": "runs/fct"}, new="runs/new", data="digits")
    """
    if not models and new is None:
        raise UserError("there is no model to compare; give models as NAME=RUN")
    if out is not None:
        check_free(out)
    shares = tuple(float(share) for share in shares)
    if not shares or list(shares) != sorted(set(shares)) or not 0 <= shares[0] <= shares[-1] <= 1:
        raise UserError(f"shares must grow within [0, 1]: {list(shares)}")
    tests = _tests(data) if data else {"vectors": given_vectors(_labels(old, labels))}
    if data and labels is not None:
        raise UserError("labels are for models that are given as vectors; data has its own")
    found = {
        name: judge(test, old, new, models, shares=shares, seed=seed)
        for name, test in tests.items()
    }
    made = report_of(title or ", ".join(tests), found, shares)
    if out is not None:
        settings = {
            "old": str(old),
            "new": str(new),
            "models": {name: str(where) for name, where in models.items()},
            "data": str(data) if isinstance(data, str) else sorted(data),
            "shares": shares,
            "seed": seed,
        }
        with new_directory(out) as folder:
            write_reports([made], folder, settings=settings, measured_on=measured_on(tests))
    return made


def measured_on(tests: Mapping[str, TestSet]) -> dict[str, str]:
    """Return {test set: its data set and splits}, in words."""
    found = {}
    for name, test in tests.items():
        if test.config is None:
            found[name] = "labelled vectors, leave-one-out"
        elif test.query == test.gallery:
            found[name] = f"{test.name}, split {test.gallery}, queried by itself"
        else:
            found[name] = f"{test.name}, {test.query} in {test.gallery}"
    return found


def _tests(data: str | Mapping[str, ConfigDict]) -> dict[str, TestSet]:
    if not isinstance(data, str):
        return {name: open_test(config) for name, config in data.items()}
    found = {}
    for part in filter(None, (part.strip() for part in data.split(","))):
        name, _, folder = part.partition("=")
        config = configs.compatible()
        config.data.name = name
        config.data.dir = str(Path(folder).expanduser()) if folder else ""
        found[name] = open_test(config)
    if not found:
        raise UserError(f"data={data!r} names no data set")
    return found


def _labels(old, labels) -> np.ndarray:
    if labels is not None:
        return array_of(labels, "labels")
    found = vectors_of(old, "old")
    if found.labels is None:
        raise UserError(
            f"{found.name} has no labels, which are needed to judge results; give labels, or data "
            "with runs"
        )
    return np.asarray(found.labels)
