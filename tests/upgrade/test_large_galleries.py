"""Galleries that stay on disk while they are assessed: the same figures, read block by block."""

import numpy as np
import pytest

from fct_jax.upgrade import assess, fit
from fct_jax.upgrade.assessment import rows as module
from fct_jax.upgrade.assessment import streamed
from fct_jax.upgrade.assessment.rows import Rows


def pairs(count: int, seed: int = 0):
    """Return unit vectors by two models, float16, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 25, count)
    latent = np.random.default_rng(9).normal(size=(25, 12))[labels] + rng.normal(size=(count, 12))
    found = []
    for dim, noise in ((16, 1.5), (20, 0.5)):
        turn = np.random.default_rng(dim).normal(size=(12, dim))
        made = latent @ turn + noise * rng.normal(size=(count, dim))
        found.append((made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16))
    return *found, labels


def test_rows_are_those_of_the_array():
    stored = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float16)
    chosen = np.array([1, 5, 7, 30, 31])
    rows = Rows(stored, 3, chosen).through(lambda v: v[:, :2] * 2, 2)
    expected = stored[chosen].astype(np.float32)[:, :2] * 2
    assert rows.shape == (5, 2) and len(rows) == 5
    np.testing.assert_array_equal(rows[1:3], expected[1:3])
    np.testing.assert_array_equal(rows[np.array([4, 0])], expected[[4, 0]])
    np.testing.assert_array_equal(np.asarray(rows), expected)


def test_what_is_computed_from_a_block_computes_it_once():
    calls = []

    def doubled(vectors):
        calls.append(len(vectors))
        return 2 * vectors

    rows = Rows(np.arange(12.0).reshape(6, 2), 2).through(doubled, 2)
    further = rows.through(lambda v: v + 1, 2)
    for part in (slice(0, 4), slice(4, 6)):
        np.testing.assert_array_equal(further[part], rows[part] + 1)
    assert calls == [4, 2]
    np.testing.assert_array_equal(rows[np.array([5])], [[20, 22]])


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_an_assessment_of_files_is_that_in_memory(threshold, tmp_path, monkeypatch):
    old, new, labels = pairs(900)
    query_old, query_new, query_labels = pairs(60, seed=1)
    mapping = fit(old[:300], new[:300], method="ridge")
    for name, vectors in (("old", old), ("new", new)):
        np.save(tmp_path / f"{name}.npy", vectors)
    for name, size in {"ROWS": 128, "PREPARED": 50, "QUERIES": 16}.items():
        monkeypatch.setattr(streamed, name, size)
    found = []
    for large in (1 << 18, 100):
        monkeypatch.setattr(module, "LARGE", large)
        made = assess(
            mapping, str(tmp_path / "old.npy"), str(tmp_path / "new.npy"), query_old=query_old,
            query_new=query_new, labels=labels, query_labels=query_labels, resamples=20,
            depth=50, threshold=threshold, out=tmp_path / f"report-{large}",
        )  # fmt: skip
        found.append(made)
    memory, disk = found
    assert len(memory.points) == len(disk.points)
    for one, other in zip(memory.points, disk.points, strict=True):
        assert (one.way, one.order, one.share) == (other.way, other.order, other.share)
        for name, value in one.values.items():
            assert other.values[name] == pytest.approx(value, abs=1e-9), (one.way, name)
    assert memory.advice == disk.advice and memory.way == disk.way
    for name, cut in memory.cutoffs.items():
        assert disk.cutoffs[name]["threshold"] == pytest.approx(cut["threshold"], abs=1e-4)
