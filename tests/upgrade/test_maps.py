"""Fitting a map, choosing one, what is saved, and mistakes."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_pairs import check_snippet, sets

from fct_jax import upgrade
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.inputs import open_sample, paired, row_hashes
from fct_jax.upgrade.maps.choosing import choose
from fct_jax.upgrade.maps.functions import Linear
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.maps.methods import METHODS


def test_auto_takes_the_best_of_held_out_pairs(text, tmp_path):
    candidates = ("ridge", "procrustes", "identity")
    found = upgrade.fit(text["old"], text["new"], candidates=candidates, out=tmp_path / "map")
    scores = found.description["quality"]
    by = found.description["judged_by"]
    assert by == "agreement@10" and list(scores) == ["procrustes", "ridge"]
    assert found.method == max(scores, key=lambda name: scores[name][by])
    assert "need" in found.description["left_out"]["identity"]
    assert found.description["pairs_held_out"] == 100
    # No pair used for fitting is among the known answers.
    assert not np.isin(row_hashes(found.known.old), found.fitted).any()
    assert np.isin(row_hashes(text["old"]), found.fitted).sum() == 400
    again = load_map(tmp_path / "map")
    assert again.fingerprint == found.fingerprint and again.description == found.description
    for one, other in zip(again.transform(text["old"]), found.transform(text["old"]), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(
        np.linalg.norm(found.transform(text["old"])[0], axis=1), 1, atol=1e-5
    )


def test_held_out_quality_is_the_slow_one(text):
    found = upgrade.fit(text["old"], text["new"], method="ridge")
    order = np.random.default_rng(0).permutation(500)
    rows = np.sort(order[:100])
    target = text["new"][rows].astype(np.float64)
    mapped = found.transform(text["old"][rows])[0].astype(np.float64)

    def nearest(gallery, i, k, without):
        near = [
            (np.linalg.norm(target[i] - gallery[j]), j) for j in range(100) if j != i or not without
        ]
        return [j for _, j in sorted(near)[:k]]

    both = [
        len(set(nearest(target, i, 10, True)) & set(nearest(mapped, i, 10, True))) / 10
        for i in range(100)
    ]
    own = [nearest(mapped, i, 1, False) == [i] for i in range(100)]
    quality = found.description["quality"]["ridge"]
    assert quality["agreement@10"] == pytest.approx(np.mean(both))
    assert quality["own"] == pytest.approx(np.mean(own))


def test_blocks_read_a_memory_map_piece_by_piece(text, tmp_path):
    np.save(tmp_path / "old.npy", text["old"])
    mapped = np.load(tmp_path / "old.npy", mmap_mode="r")
    found = upgrade.fit(text["old"], text["new"], method="procrustes")
    whole = found.transform(text["old"])
    parts = list(found.blocks(mapped, 64))
    assert [len(part[0]) for part in parts] == [64] * 7 + [52]
    np.testing.assert_allclose(np.concatenate([p[0] for p in parts]), whole[0], atol=1e-6)
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), whole[1], atol=1e-5)
    assert found.transform(text["old"][:0])[0].shape == (0, 384)


def test_linear_maps_are_exported(text, tmp_path):
    found = upgrade.fit(text["old"], text["new"], method="ridge", out=tmp_path / "map")
    check_snippet(tmp_path / "map", text["old"], found.transform(text["old"])[0])


def test_bridges_map_queries_of_the_new_model_to_the_old_space(text, tmp_path):
    bridge = upgrade.fit(
        text["old"], text["new"], method="ridge", direction="backward", out=tmp_path / "bridge"
    )
    turned = upgrade.fit(text["new"], text["old"], method="ridge")
    np.testing.assert_array_equal(
        bridge.transform(text["new"])[0], turned.transform(text["new"])[0]
    )
    assert (bridge.dim_in, bridge.dim_out) == (384, 256)
    again = load_map(tmp_path / "bridge")
    assert again.direction == "backward" and again.fingerprint == bridge.fingerprint
    with pytest.raises(UserError, match="this map is a bridge"):
        upgrade.assess(again, text["old"], text["new"])
    EmbeddingSet.of(text["old"]).write(tmp_path / "old")
    with pytest.raises(UserError, match="this map is a bridge"):
        upgrade.Upgrade(tmp_path / "up").plan(tmp_path / "bridge", tmp_path / "old")
    with pytest.raises(UserError, match="unknown direction 'back'; did you mean 'backward'"):
        upgrade.fit(text["old"], text["new"], direction="back")


def test_rows_without_ids_are_paired_only_where_there_are_as_many(tmp_path):
    rng = np.random.default_rng(0)
    old, new = rng.normal(size=(300, 6)), rng.normal(size=(200, 4))
    np.save(tmp_path / "old.npy", old.astype(np.float32))
    np.save(tmp_path / "new.npy", new.astype(np.float32))
    message = "has 300 rows and .* 200, and neither has ids .*_ids.npy"
    for arguments in ((old, new), (tmp_path / "old.npy", str(tmp_path / "new.npy"))):
        for used in (upgrade.fit, lambda *pair: upgrade.assess("identity", *pair)):
            with pytest.raises(UserError, match=message) as error:
                used(*arguments)
            assert "\n" not in str(error.value)
    # Ids given on one side are ids, even if they look like row numbers.
    left, right = paired(EmbeddingSet.of(old), EmbeddingSet.of(new, ids=np.arange(100, 300)))
    np.testing.assert_array_equal(left.vectors, old[100:])
    assert len(right) == 200


def test_the_fingerprint_is_of_what_a_map_does(text, tmp_path, monkeypatch):
    clock = iter(np.cumsum(np.random.default_rng(0).uniform(1, 9, 100)))
    monkeypatch.setattr("fct_jax.upgrade.maps.fitting.time.monotonic", lambda: next(clock))
    maps = [upgrade.fit(text["old"], text["new"], method="procrustes") for _ in range(2)]
    seconds = [m.description["quality"]["procrustes"]["seconds"] for m in maps]
    assert seconds[0] != seconds[1] and maps[0].fingerprint == maps[1].fingerprint
    for name, value in maps[0].weights.items():
        np.testing.assert_array_equal(value, maps[1].weights[name])
    # Another seed splits the pairs in another way and so gives another map.
    other = upgrade.fit(text["old"], text["new"], method="procrustes", seed=1)
    assert other.fingerprint != maps[0].fingerprint
    # The fingerprint depends on each part of the function, and on the spaces it connects.
    first = maps[0]
    changed = Linear(**{**first.function.arrays(), "bias": first.function.bias + 1e-6})
    for made in (
        upgrade.Map(first.description, changed, first.uncertainty),
        upgrade.Map(first.description, first.function),
        upgrade.Map({**first.description, "unit_output": False}, first.function, first.uncertainty),
        upgrade.Map(
            {**first.description, "new_fingerprint": "c"}, first.function, first.uncertainty
        ),
    ):
        assert made.fingerprint != first.fingerprint


def test_maps_of_format_version_1_are_read(text, tmp_path):
    """Such a map names no kind of function, and unfinished upgrades name its fingerprint."""
    found = upgrade.fit(text["old"], text["new"], method="ridge", out=tmp_path / "map")
    path = tmp_path / "map" / "map.json"
    described = json.loads(path.read_text())
    del described["function"], described["direction"]
    described |= {"format_version": 1, "fingerprint": "0123456789abcdef"}
    path.write_text(json.dumps(described))
    again = load_map(tmp_path / "map")
    assert again.fingerprint == again.description["fingerprint"] == "0123456789abcdef"
    for one, other in zip(again.transform(text["old"]), found.transform(text["old"]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_vectors_that_a_map_cannot_take(text):
    found = upgrade.fit(text["old"], text["new"], method="procrustes")
    old = text["old"].astype(np.float32)
    broken = np.tile(old, (20, 1))
    broken[7001, 3] = np.nan
    for vectors, message in (
        (text["new"], r"takes old vectors of dimension 256, but these have shape \(500, 384\)"),
        (
            old[0],
            r"\(N, 256\), but this is a single vector of shape \(256,\); give vector\[None\]",
        ),
        (old[0, 0], r"these have shape \(\)"),
        (old[None], r"these have shape \(1, 500, 256\)"),
        (broken, "the old vector in row 7001 holds NaN or infinity"),
        (np.where(old == old[0, 0], np.inf, old), "in row 0 holds NaN or infinity"),
        (old.astype(str), "takes vectors of numbers, not <U"),
    ):
        with pytest.raises(UserError, match=message) as error:
            found.transform(vectors)
        assert "\n" not in str(error.value)
    expected = found.transform(old[:2])[0]
    np.testing.assert_array_equal(found.transform(old[:2].tolist())[0], expected)


def test_too_few_pairs_for_a_method_give_a_simpler_one(text, monkeypatch, capsys):
    demanding = dataclasses.replace(METHODS["ridge"], fewest=lambda do, dn: 4 * dn)
    monkeypatch.setitem(METHODS, "demanding", demanding)
    found = upgrade.fit(text["old"], text["new"], method="demanding")
    assert found.method == "procrustes"
    said = found.description["left_out"]["demanding"]
    assert said == "it needs 1,536 pairs to fit on, and there are 400"
    assert "it needs 1,536 pairs" in " ".join(capsys.readouterr().err.split())
    chosen = upgrade.fit(text["old"], text["new"], candidates=("demanding", "ridge"))
    assert chosen.method == "ridge" and chosen.description["left_out"]["demanding"] == said


def test_auto_leaves_out_what_is_not_installed(text, monkeypatch, capsys):
    def lacking(pairs):
        raise ModuleNotFoundError("No module named 'orbax'", name="orbax.checkpoint")

    monkeypatch.setitem(METHODS, "fct", dataclasses.replace(METHODS["fct"], fit=lacking))
    found = upgrade.fit(text["old"], text["new"], candidates=("ridge", "fct"))
    said = found.description["left_out"]["fct"]
    assert found.method == "ridge" and said.endswith("pip install 'fct_jax[train]'")
    assert "fct is left out: this needs orbax" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ModuleNotFoundError):  # the command prints it as one line
        upgrade.fit(text["old"], text["new"], method="fct")


def test_the_simplest_of_equally_good_maps_is_chosen():
    rng = np.random.default_rng(0)
    base = rng.uniform(size=400)
    noise = 0.2 * rng.normal(size=400)
    noise -= noise.mean()
    simple = {"agreement@10": base, "own": base}
    alike = {"agreement@10": base + noise + 1e-3, "own": base}
    better = {"agreement@10": base + noise + 0.05, "own": base}
    assert choose({"simple": simple, "alike": alike}) == ("simple", "simplicity")
    assert choose({"simple": simple, "better": better}) == ("better", "agreement@10")
    # Labels decide first; if they cannot tell maps apart, the neighbours do.
    ap = {"map": base, **better}
    worse = {"map": base - 0.2, **simple}
    assert choose({"a": worse, "b": ap}) == ("b", "map")
    assert choose({"a": {**worse, "map": base}, "b": ap}) == ("b", "agreement@10")
    alone = np.full(400, np.nan)
    assert choose({"a": {**worse, "map": alone}, "b": {**ap, "map": alone}})[1] == "agreement@10"


def test_pairs_are_found_by_id(tmp_path):
    old, new = sets()
    np.save(tmp_path / "new.npy", new.vectors[100:20:-1])
    np.save(tmp_path / "new_ids.npy", new.ids[100:20:-1])
    left, right = paired(old, open_sample(tmp_path / "new.npy", "new"))
    np.testing.assert_array_equal(left.ids, np.arange(100, 20, -1))
    np.testing.assert_array_equal(left.vectors, old.vectors[100:20:-1])
    np.testing.assert_array_equal(right.vectors, new.vectors[100:20:-1])


def test_labels_follow_their_pairs():
    old, new = sets(labels=np.arange(160) % 2)
    few = EmbeddingSet.of(old.vectors[40:], ids=old.ids[40:])
    bare = EmbeddingSet.of(new.vectors, meta=new.meta)
    both = [
        upgrade.fit(few, new, method="ridge"),
        upgrade.fit(few, bare, method="ridge", labels=np.arange(160) % 2),
    ]
    scores = [found.description["quality"]["ridge"]["map"] for found in both]
    assert scores[0] == pytest.approx(scores[1])


def test_zero_vectors_are_left_out_and_counted():
    old, new = sets(labels=np.arange(160) % 2)
    vectors = new.vectors.copy()
    vectors[[3, 50]] = 0
    broken = EmbeddingSet.of(vectors, labels=new.labels, meta=new.meta)
    found = upgrade.fit(old, broken, method="ridge")
    assert found.description["zero_pairs_left_out"] == 2
    kept = np.delete(np.arange(160), [3, 50])
    same = upgrade.fit(
        EmbeddingSet.of(old.vectors[kept], labels=old.labels[kept], meta=old.meta),
        EmbeddingSet.of(new.vectors[kept], labels=new.labels[kept], meta=new.meta),
        method="ridge",
    )
    np.testing.assert_array_equal(found.weights["weight"], same.weights["weight"])
    with pytest.raises(UserError, match="149 of 160 pairs have a zero vector"):
        upgrade.fit(old, EmbeddingSet.of(vectors * (np.arange(160)[:, None] < 12)), method="ridge")


def test_parquet_folders_are_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    old, _ = sets()
    table = pa.table({"id": [f"k{i}" for i in old.ids], "vector": list(old.vectors)})
    (tmp_path / "old").mkdir()
    pq.write_table(table, tmp_path / "old" / "part.parquet")
    found = open_sample(tmp_path / "old", "old")
    np.testing.assert_array_equal(found.vectors, old.vectors)
    assert found.ids[3] == "k3"


def test_mistakes_are_one_line(tmp_path):
    old, new = sets()
    shuffled = EmbeddingSet.of(np.random.default_rng(0).permutation(new.vectors))
    far = EmbeddingSet.of(new.vectors, ids=new.ids + 1000)
    broken = EmbeddingSet.of(np.where(np.arange(160)[:, None] == 3, np.nan, new.vectors))
    np.save(tmp_path / "ints.npy", np.ones((160, 6), int))
    (tmp_path / "junk.npy").write_text("junk")
    for arguments, keywords, message in (
        ((old, new), {"method": "rigde"}, "did you mean 'ridge'"),
        ((old, shuffled), {"method": "ridge"}, "known-answer"),
        ((old, far), {}, "share 0 ids"),
        ((old, broken), {}, "id 3 is not finite"),
        ((old, new), {"metric": "dot"}, "unknown metric"),
        ((old, new), {"held_out": 1.0}, "held_out must be"),
        ((old, new), {"labels": np.zeros(3, int)}, "labels must be 160"),
        ((old, new), {"out": tmp_path}, "exists already"),
        ((tmp_path, new), {}, "no gallery at"),
        (("", new), {}, "old is empty; give vectors"),
        ((tmp_path / "ints.npy", new), {}, r"ints.npy: vectors must be \(N, D\) floats"),
        ((tmp_path / "junk.npy", new), {}, "junk.npy cannot be read: it is not a .npy array"),
        ((old, new), {"labels": tmp_path / "none.npy"}, "none.npy does not exist"),
        ((old, new), {"classifier": np.eye(3, 4)}, "a classifier can only be used with labels"),
        ((old, new), {"epochs": -1}, "epochs must be 0 or more, not -1"),
        ((old, new), {"inner_dim": 0}, "inner_dim must be 1 or more, not 0"),
    ):
        with pytest.raises(UserError, match=message) as error:
            upgrade.fit(*arguments, **keywords)
        assert "\n" not in str(error.value)


def test_a_damaged_or_missing_map_is_refused(text, tmp_path):
    found = upgrade.fit(text["old"], text["new"], method="procrustes", out=tmp_path / "map")
    with pytest.raises(UserError, match="takes old vectors of dimension 256"):
        found.transform(text["new"])
    path = tmp_path / "map" / "weights.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-40] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        load_map(tmp_path / "map")
    with pytest.raises(UserError, match="no map in"):
        load_map(tmp_path)


def test_the_package_offers_its_functions_lazily():
    assert callable(upgrade.fit) and callable(upgrade.assess) and "fit" in dir(upgrade)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        upgrade.fitt  # noqa: B018
