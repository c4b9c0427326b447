"""The doctor finds each kind of fault in real vectors, and nothing in sound ones."""

from pathlib import Path

import numpy as np
import pytest

from fct_jax.demo import load
from fct_jax.errors import UserError
from fct_jax.upgrade.checks.doctor import examine
from fct_jax.upgrade.checks.mixed import mixed_spaces

with np.load(Path(__file__).parents[1] / "text_sample.npz") as _file:
    OLD, NEW = (np.asarray(_file[name], np.float32) for name in ("old", "new"))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def spoilt(kind):
    """Return the new model's unit vectors, (500, 384), with a fault."""
    rows, rng = unit(NEW).copy(), np.random.default_rng(0)
    if kind == "NaN":
        rows[7, 3] = np.nan
    elif kind == "infinite":
        rows[7, 3] = -np.inf
    elif kind == "zero":
        rows[[3, 40]] = 0
    elif kind == "cut":
        rows = rows[:, :256]
    elif kind == "mixed lengths":
        rows[::3] *= rng.uniform(2, 9, (len(rows[::3]), 1)).astype(np.float32)
    elif kind == "equal vectors":
        rows[:60] = rows[0]
    elif kind == "mixed spaces":
        rows = unit(rows[:, :256])
        rows[250:] = unit(OLD[250:])
    elif kind == "not varied":
        rows = unit(rows[:1] + 1e-4 * rng.normal(size=rows.shape)).astype(np.float32)
    elif kind == "low rank":
        rows = unit(rng.normal(size=(500, 4)) @ rng.normal(size=(4, 384))).astype(np.float32)
    return rows


KINDS = {
    "NaN": 1, "infinite": 1, "zero": 2, "cut": 500, "mixed lengths": 167, "equal vectors": 60,
    "mixed spaces": 250, "not varied": 500, "low rank": 500,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_is_found_and_no_other(tmp_path, kind):
    np.save(tmp_path / "v.npy", spoilt(kind))
    found = examine(tmp_path / "v.npy").findings
    assert [finding.kind for finding in found] == [kind], found
    assert found[0].count == pytest.approx(KINDS[kind], rel=0.1)


@pytest.mark.parametrize("name", ["old", "new", "digits"])
def test_nothing_is_found_in_sound_vectors(tmp_path, name):
    rows = {"old": OLD, "new": NEW, "digits": load("validation").new}[name]
    np.save(tmp_path / "v.npy", rows)
    found = examine(tmp_path / "v.npy")
    assert found.findings == []
    assert (found.rows, found.dim) == rows.shape
    lengths = np.linalg.norm(rows, axis=1)
    expected = lengths.min(), lengths.mean(), lengths.max()
    np.testing.assert_allclose(found.lengths, expected, rtol=1e-5)


def test_repeated_ids_are_told(tmp_path):
    np.save(tmp_path / "v.npy", NEW[:30])
    np.save(tmp_path / "v_ids.npy", np.r_[np.arange(29), 5])
    found = examine(tmp_path / "v.npy")
    assert [(f.kind, f.count) for f in found.findings] == [("repeated id", 1)]
    assert found.rows == 30


def test_topics_of_one_model_are_no_second_model():
    """Two groups of entries are as far apart as 2-means can find."""
    rows = unit(NEW)
    first = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][0]
    assert mixed_spaces(rows[np.argsort(rows @ first)]) is None


def test_nothing_to_read(tmp_path):
    with pytest.raises(UserError, match="no/such"):
        examine("no/such")
    np.save(tmp_path / "zeros.npy", np.zeros((30, 8), np.float32))
    with pytest.raises(UserError, match="no usable vector"):
        examine(tmp_path / "zeros.npy")
