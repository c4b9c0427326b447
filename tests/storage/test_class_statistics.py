"""Class statistics against the original's arrays, a plain loop, and wrong input."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.storage.class_statistics import (
    ClassStatistics,
    class_statistics,
    load_statistics,
    save_statistics,
)

KINDS = {"euclidean": "radius", "angle": "theta"}


def kept_list(units, center, kind):
    """Return a class's sorted distances without outliers by the definition, sample by sample."""
    values = []
    for unit in units:
        if kind == "euclidean":
            values.append(np.sqrt(np.sum((unit - center) ** 2)))
        else:
            cosine = np.dot(unit, center) / max(np.sqrt(np.sum(center**2)), 1e-12)
            values.append(np.arccos(min(max(cosine, -1.0), 1.0)))
    values.sort()
    if len(values) < 4:
        return values
    low, high = values[len(values) // 4], values[3 * len(values) // 4]
    reach = 1.5 * (high - low)
    return [value for value in values if low - reach <= value <= high + reach]


def slow_statistics(embeddings, labels, num_classes, kind):
    for class_id in range(num_classes):
        rows = embeddings[labels == class_id].astype(np.float64)
        if not len(rows):
            yield np.zeros(embeddings.shape[1]), []
            continue
        units = [row / np.sqrt(np.sum(row**2)) for row in rows]
        center = sum(units) / len(units)
        yield center, kept_list(units, center, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_golden(golden_advbct, kind):
    arrays = golden_advbct.arrays("class_meta")
    name = KINDS[kind]
    ids = arrays["class_ids"]
    stats = class_statistics(arrays["features"], arrays["labels"], ids.max() + 1, kind)
    np.testing.assert_allclose(stats.center[ids], arrays["centers"], atol=2e-6)
    loose = np.where(arrays["counts"] == 1, 6e-4, 3e-5) if kind == "angle" else 2e-6
    assert (np.abs(stats.radius[ids] - arrays[f"{name}_max"]) <= loose).all()
    np.testing.assert_array_equal(stats.num_kept[ids], arrays[f"{name}_kept"])
    offsets, values = arrays[f"{name}_offsets"], arrays[f"{name}_values"]
    np.testing.assert_array_equal(np.diff(offsets), stats.num_kept[ids])
    assert (np.abs(stats.smallest_radius[ids] - values[offsets[:-1]]) <= loose).all()
    unseen = np.setdiff1d(np.arange(len(stats.radius)), ids)
    assert not stats.num_kept[unseen].any()
    np.testing.assert_array_equal(
        np.bincount(arrays["labels"], minlength=len(stats.radius))[ids], arrays["counts"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_golden_lists(golden_advbct, kind):
    """The loop that other tests rely on gives every entry of the published lists."""
    arrays, info = golden_advbct.arrays("class_meta"), golden_advbct.json("class_meta")
    num_classes = arrays["class_ids"].max() + 1
    lists = list(slow_statistics(arrays["features"], arrays["labels"], num_classes, kind))
    published = info[f"meta_{KINDS[kind]}"]
    assert sorted(map(int, published)) == list(arrays["class_ids"])
    for class_id, values in published.items():
        if isinstance(values, dict):
            values = values["radius"]
        np.testing.assert_allclose(lists[int(class_id)][1], values, atol=6e-4)
    order = dict.fromkeys(int(label) for label in arrays["labels"])
    assert list(order) == info["order_of_keys"]


@settings(deadline=None, max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    beyond=st.integers(0, 3),
    rows=st.sampled_from([1, 3, 16384]),
    kind=st.sampled_from(list(KINDS)),
    seed=st.integers(0, 999),
)
def test_equals_the_loop(sizes, beyond, rows, kind, seed):
    """This holds for any class sizes, order and block size; unknown labels are left out."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes) + 1), [*sizes, beyond])
    rng.shuffle(labels)
    embeddings = rng.standard_normal((len(labels), 5)).astype(np.float32)
    stats = class_statistics(embeddings, labels, len(sizes), kind, block_rows=rows)
    for row, (center, kept) in enumerate(slow_statistics(embeddings, labels, len(sizes), kind)):
        np.testing.assert_allclose(stats.center[row], center, atol=1e-6)
        assert stats.num_kept[row] == len(kept)
        np.testing.assert_allclose(stats.radius[row], kept[-1] if kept else 0, atol=1e-6)
        np.testing.assert_allclose(stats.smallest_radius[row], kept[0] if kept else 0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3, 7])
def test_identical_vectors_are_all_kept(kind, size):
    vector = np.random.default_rng(size).standard_normal(6).astype(np.float32)
    stats = class_statistics(np.tile(vector, (size, 1)), np.zeros(size, int), 1, kind)
    assert stats.num_kept[0] == size
    assert stats.radius[0] < 1e-6


def test_opposite_vectors_have_a_center_of_zero():
    embeddings = np.array([[1, 0], [-1, 0]], np.float32)
    stats = class_statistics(embeddings, np.zeros(2, int), 1, "angle")
    np.testing.assert_allclose(stats.radius, np.pi / 2, rtol=1e-6)


def test_many_classes_take_a_moment():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 80_000, 200_000)
    stats = class_statistics(rng.standard_normal((200_000, 8), np.float32), labels, 80_000)
    assert stats.num_kept.sum() > 150_000


def test_is_a_pytree():
    stats = class_statistics(np.eye(3, dtype=np.float32), np.arange(3), 3)
    doubled = jax.jit(lambda s: jax.tree.map(lambda x: 2 * x, s))(stats)
    np.testing.assert_array_equal(doubled.center, 2 * np.eye(3))
    assert doubled.kind == "euclidean"


GOOD = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("embeddings", "labels", "num_classes", "kind", "message"),
    [
        (GOOD, np.zeros(3, int), 1, "euclidean", r"\(2, 3\) and labels \(3,\)"),
        (GOOD[0], np.zeros(3, int), 1, "euclidean", "shape|must be"),
        (GOOD, np.zeros(2), 1, "euclidean", "integers"),
        (GOOD, np.array([0, -1]), 1, "euclidean", "label -1 of sample 1"),
        (GOOD, np.zeros(2, int), 0, "euclidean", "num_classes"),
        (GOOD, np.zeros(2, int), 1, "angel", "did you mean 'angle'"),
        (GOOD * [[1], [0]], np.zeros(2, int), 1, "euclidean", "embedding 1 is zero"),
        (GOOD * [[1], [np.nan]], np.zeros(2, int), 1, "angle", "embedding 1 is NaN"),
        (GOOD * [[np.inf], [1]], np.zeros(2, int), 1, "angle", "embedding 0 is NaN"),
    ],
)
def test_wrong_input(embeddings, labels, num_classes, kind, message):
    with pytest.raises(UserError, match=message):
        class_statistics(embeddings, labels, num_classes, kind)


@pytest.fixture
def saved(tmp_path):
    stats = class_statistics(np.eye(3, dtype=np.float32), np.array([0, 0, 2]), 3)
    save_statistics(tmp_path / "class_statistics.npz", stats, fingerprint="abc")
    return tmp_path / "class_statistics.npz", stats


def test_save_and_load(saved):
    path, stats = saved
    loaded = load_statistics(path, fingerprint="abc", num_classes=3, kind="euclidean")
    for before, after in zip(jax.tree.leaves(stats), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(before, after)
    assert loaded.kind == "euclidean"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "expected", [{"fingerprint": "xyz"}, {"num_classes": 4}, {"kind": "angle"}]
)
def test_load_refuses_other_statistics(saved, expected):
    with pytest.raises(UserError, match="expected"):
        load_statistics(saved[0], **expected)


def rewrite(path, **changes):
    with np.load(path) as file:
        content = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: array for name, array in content.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"radius": None}, "radius missing"),
        ({"version": 9}, "version 9"),
        ({"kind": "square"}, "unknown kind"),
        ({"radius": np.zeros(2)}, "3 classes"),
        ({"center": np.zeros(3)}, "3 classes"),
        ({"radius": np.full(3, np.nan)}, "NaN"),
    ],
)
def test_load_refuses_damaged_content(saved, changes, message):
    rewrite(saved[0], **changes)
    with pytest.raises(UserError, match=message):
        load_statistics(saved[0])


def test_load_refuses_missing_and_truncated_files(saved):
    path, _ = saved
    with pytest.raises(UserError, match="no class statistics found"):
        load_statistics(path.with_name("other.npz"))
    for size in (0, 50, path.stat().st_size // 2):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(UserError, match="not readable"):
            load_statistics(path)


def test_statistics_made_by_hand_cannot_be_saved(tmp_path):
    stats = ClassStatistics(center=GOOD, radius=GOOD[:, 0], num_kept=GOOD[:, 0])
    with pytest.raises(UserError, match="made by class_statistics"):
        save_statistics(tmp_path / "x.npz", stats, fingerprint="abc")
