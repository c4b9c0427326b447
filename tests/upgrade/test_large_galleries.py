"""Galleries that stay on disk while they are assessed: the same figures, read block by block."""

import dataclasses
import types

import numpy as np
import pytest

from fct_jax.evaluate import orders
from fct_jax.evaluate.orders import ORDERS, Items
from fct_jax.storage import sorting
from fct_jax.upgrade import assess, fit
from fct_jax.upgrade.assessment import rows as module
from fct_jax.upgrade.assessment import streamed
from fct_jax.upgrade.assessment.rows import Rows
from fct_jax.upgrade.confidence import usual_cells
from fct_jax.upgrade.ways import calibration, judged_weights, scores
from fct_jax.upgrade.ways.calibration import Weights
from fct_jax.upgrade.ways.judged_weights import fit_weights
from fct_jax.upgrade.ways.relevance import by_labels


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


class Counted(Rows):
    """Rows of which only few may be read together."""

    most = 0

    def __getitem__(self, rows):
        found = super().__getitem__(rows)
        self.most = max(self.most, len(found))
        return found

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("all rows are read at once")


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_orders_by_vectors_read_blocks_of_rows(metric, monkeypatch):
    """All orders are those of the vectors in memory, with ties, and are sorted on disk."""
    old, new, labels = pairs(900)
    old[700:720] = old[:20]
    new[700:720] = new[:20]
    old, new = old.astype(np.float32), new.astype(np.float32)
    translated = np.roll(new, 1, axis=1)
    known = Items(900, 3, metric, old=old, new=new, transformed=translated, training=old[100:150])
    names = ("confidence", "class_mean", "distance")
    expected = [ORDERS[name].rank(known) for name in names]
    by_class = ORDERS["class_mean"].rank(dataclasses.replace(known, classes=labels))
    monkeypatch.setattr(sorting, "BLOCK", 250)
    monkeypatch.setattr(orders, "_ROWS_READ", 64)
    large = {name: Counted(v, v.shape[1]) for name, v in
             (("old", old), ("new", new), ("transformed", translated))}  # fmt: skip
    for name, wanted in zip(names, expected, strict=True):
        on_disk = dataclasses.replace(known, **large)
        np.testing.assert_array_equal(ORDERS[name].rank(on_disk), wanted)
    on_disk = dataclasses.replace(known, **large, classes=labels)
    np.testing.assert_array_equal(ORDERS["class_mean"].rank(on_disk), by_class)
    assert large["new"].most == 64


def test_a_gallery_is_translated_once_for_its_log_variances_and_cells(monkeypatch):
    old = pairs(900)[0].astype(np.float32)
    mapping = types.SimpleNamespace(
        has_uncertainty=True, uncertainty={}, dim_out=16, transform=lambda v: (-v, v[:, 0])
    )
    known = Items(900, 3, "cosine", transformed=-old)
    expected = ORDERS["class_mean"].score(known)
    monkeypatch.setattr(module, "BLOCK", 250)
    read = []

    class Noted(Rows):
        def __getitem__(self, rows):
            read.append(rows)
            return super().__getitem__(rows)

    wanted = usual_cells(900) | {"seed": 3}
    moved, log_variance, cells = module.translated(mapping, Noted(old, 16), wanted)
    assert len(read) == 1 + 4  # the sample of k-means, and every block
    np.testing.assert_array_equal(log_variance, old[:, 0])
    known = dataclasses.replace(known, transformed=moved, cells=cells)
    np.testing.assert_allclose(ORDERS["class_mean"].score(known), expected, atol=1e-9)
    assert len(read) == 5 + 1  # once more


class Unread:
    """Vectors that cost reading."""

    def __getitem__(self, rows):
        raise AssertionError("no order by uncertainty or traffic reads vectors")


@pytest.mark.parametrize("name", ["uncertainty", "certainty", "traffic", "uncertainty×traffic"])
def test_orders_sorted_on_disk_read_no_vectors(name, monkeypatch):
    known = np.random.default_rng(2).random((2, 700))
    facts = {"uncertainty": known[0], "traffic": known[1]}
    expected = orders.find_order(name).rank(Items(700, **facts))
    monkeypatch.setattr(sorting, "BLOCK", 250)
    vectors = {side: Unread() for side in ("old", "new", "transformed")}
    np.testing.assert_array_equal(
        orders.find_order(name).rank(Items(700, **facts, **vectors)), expected
    )


def test_judged_weights_are_learnt_from_blocks_of_rows(monkeypatch):
    """They are those learnt in memory."""
    old, new, labels = pairs(450)
    query_old, query_new, query_labels = pairs(60, seed=1)
    old, new = old.astype(np.float32), new.astype(np.float32)
    for module_, name in ((scores, "BLOCK"), (calibration, "REFERENCE")):
        monkeypatch.setattr(module_, name, 100)
    monkeypatch.setattr(judged_weights, "_TOGETHER", 64)
    relevant = by_labels(query_labels, labels[50:])
    on_disk = [Counted(vectors[50:], vectors.shape[1]) for vectors in (old, new)]
    memory, disk = (
        fit_weights((old[:50], new[:50]), query_old, query_new, *sides, relevant, metric="cosine")
        for sides in ((old[50:], new[50:]), on_disk)
    )
    assert memory == disk != Weights()
    assert max(rows.most for rows in on_disk) <= 300  # a query's candidates


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
            judged_calibration=0.5 if threshold else 0.0,
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
