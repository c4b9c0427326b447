"""Plans for stores: ids on disk, orders computed batch by batch, and what an item costs."""

import tracemalloc
import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fct_jax import load_map
from fct_jax.errors import UserError
from fct_jax.evaluate.orders import Items, find_order
from fct_jax.upgrade.migration.planning import Wanted
from fct_jax.upgrade.stores.base import Batch, Store
from fct_jax.upgrade.stores.id_file import IdFile
from fct_jax.upgrade.stores.planning import _descending, make_store_plan
from fct_jax.upgrade.stores.samples import Drawn
from fct_jax.upgrade.stores.screen import Screen
from fct_jax.upgrade.stores.uri import parse

ALL = {
    "int": [5, -7, 2**62, 0, 11],
    "uuid": [str(uuid.uuid5(uuid.NAMESPACE_URL, str(n))) for n in range(5)],
    "text": ["b", "", "naïve ü", "a\nb", "z" * 300],
}


class Counted(Store):
    """N rows that are not stored: row n has the id 3n and a vector that depends on n."""

    metric, id_kind, meta, dim = "cosine", "int", {}, 4

    def __init__(self, count: int):
        self.uri, self.rows = parse("counted://host/rows"), count

    def count(self):
        return self.rows

    def page(self, after, limit, vectors=True):
        first = 0 if after is None else after // 3 + 1
        numbers = np.arange(first, min(first + limit, self.rows))
        return self._batch(numbers, vectors)

    def _batch(self, numbers, vectors=True):
        made = np.stack([np.cos(numbers * (k + 1.0)) for k in range(4)], 1) if vectors else None
        made = np.zeros((len(numbers), 0), np.float32) if made is None else made
        last = int(numbers[-1]) * 3 if len(numbers) else None
        return Batch(numbers * 3, made.astype(np.float32), numbers + 1, last)

    def sample(self, n, seed=0):
        return self._batch(np.sort(np.random.default_rng(seed).choice(self.rows, n, replace=False)))

    fetch = states = rows_of = write = delete = search = build_index = sibling = pointer = None


class CountedByUuid(Counted):
    """The same rows with UUIDs as ids."""

    id_kind = "uuid"

    def page(self, after, limit, vectors=True):
        return self._named(
            super().page(None if after is None else number_of(after), limit, vectors)
        )

    def sample(self, n, seed=0):
        return self._named(super().sample(n, seed))

    def _named(self, batch):
        ids = [str(uuid.UUID(int=int(one) << 80)) for one in batch.ids]
        last = ids[-1] if ids else None
        return Batch(np.array(ids, "U36"), batch.vectors, batch.tokens, last)


def number_of(one: str) -> int:
    """Return the number of which an id was made."""
    return uuid.UUID(one).int >> 80


Counted.__abstractmethods__ = CountedByUuid.__abstractmethods__ = frozenset()


def planned(folder, store, **wanted):
    """Make a plan with the identity map; return its ids, first item first."""
    mapping = load_map("identity").for_dim(4)
    drawn = Drawn(store, 100)
    made = make_store_plan(
        folder / "plan", store, mapping, drawn, None, Wanted(**wanted), Screen(store)
    )
    return made.ids


@pytest.mark.parametrize("kind", ALL)
def test_ids_are_kept_on_disk(kind, tmp_path):
    made = IdFile(tmp_path / "ids", kind)
    want = np.array(ALL[kind], np.int64 if kind == "int" else np.str_)
    made.append(want[:2])
    assert made[1] == want[1]
    made.append(want[2:])
    again = IdFile(tmp_path / "ids", kind)
    again.append(want)
    for found in (made, again):
        assert found[np.array([4, 0, 2])].tolist() == want[[4, 0, 2]].tolist()
    assert len(again) == 10 and again[5:].tolist() == want.tolist()
    size = {"int": 80, "uuid": 160}.get(kind)
    assert size is None or (tmp_path / "ids" / "ids.bin").stat().st_size == size
    assert len(IdFile(tmp_path / "none", kind)[np.zeros(0, int)]) == 0


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=30))
def test_numbers_that_sort_as_descending_scores(scores):
    scores = np.array(scores, np.float32)
    keys = _descending(scores)
    order = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(scores[order], -np.sort(-scores))


def test_the_traffic_order_is_that_of_files(tmp_path):
    rng, store = np.random.default_rng(3), Counted(9000)  # more than two batches
    ids = rng.permutation(9000)[:5000] * 3
    weight = rng.integers(1, 40, 5000)
    traffic = np.zeros(5000, [("id", "i8"), ("weight", "f8")])
    traffic["id"], traffic["weight"] = ids, weight
    np.save(tmp_path / "traffic.npy", traffic)
    found = planned(tmp_path, store, order="traffic", traffic=tmp_path / "traffic.npy")
    whole = np.zeros(9000)
    whole[ids // 3] = weight
    want = find_order("traffic").rank(Items(9000, traffic=whole)) * 3
    np.testing.assert_array_equal(found[:], want)


def test_a_random_order_is_fair_and_the_same_again(tmp_path):
    store = Counted(10_000)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, again = (planned(tmp_path / n, store, order="random", seed=4)[:] for n in ("a", "b"))
    np.testing.assert_array_equal(first, again)
    assert np.array_equal(np.sort(first), np.arange(10_000) * 3)
    # The mean of a tenth of the numbers is within five standard errors of the mean of all.
    tenth = first[:1000] / 3
    assert abs(tenth.mean() - 5000) < 5 * 10_000 / np.sqrt(12 * 1000)


def test_orders_that_compare_items_are_refused(tmp_path):
    with pytest.raises(UserError, match="scored one by one"):
        planned(tmp_path, Counted(500), order="class_mean")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Counted, CountedByUuid])
def test_an_item_costs_a_plan_sixteen_bytes_at_most(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("fct_jax.upgrade.stores.planning._BLOCK", 1024)  # ids in memory at once
    small, large, peaks = 60_000, 120_000, []
    for count in (small, large):
        (tmp_path / str(count)).mkdir()
        tracemalloc.start()
        planned(tmp_path / str(count), kind(count), order="random")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    each = (peaks[1] - peaks[0]) / (large - small)
    print(f"{kind.id_kind}: {each:.1f} bytes per item")
    assert each <= 16
