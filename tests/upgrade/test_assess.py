"""Assessments: metrics against loops, the curves against plain searches, verdicts, the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax import upgrade
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.assessment.points import Budget, group_values
from fct_jax.upgrade.inputs import row_hashes
from fct_jax.upgrade.ways import WAYS, relevance
from fct_jax.upgrade.ways.scores import Space

SAMPLE = Path(__file__).parents[1] / "text_sample.npz"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def text():
    with np.load(SAMPLE) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def text_map(text):
    """Fit a map on 160 of the entries, none of which a query seeks."""
    free = np.flatnonzero(~np.isin(text["ids"], text["query_relevant"]))[:160]
    return upgrade.fit(text["old"][free], text["new"][free], method="ridge")


def of_ids(text, name):
    return EmbeddingSet.of(text[name], text["ids"])


# What counts as found


def slow_metrics(rows, gains, depth):
    """Return one query's metrics by the textbook, for ranked rows and gains {row: gain}."""
    hits = [row in gains for row in rows]
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(depth) if hits[i]]
    dcg = sum(gains.get(row, 0) / np.log2(i + 2) for i, row in enumerate(rows[:10]))
    ideal = sorted(gains.values(), reverse=True)[:10]
    return {
        "cmc@1": float(hits[0]),
        "cmc@5": float(any(hits[:5])),
        "recall@10": sum(hits[:10]) / len(gains),
        "ndcg@10": dcg / sum(gain / np.log2(i + 2) for i, gain in enumerate(ideal)),
        "mrr": next((1 / (i + 1) for i, hit in enumerate(hits) if hit), 0.0),
        "map": sum(precision) / min(len(gains), depth),
    }


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), graded=st.booleans())
def test_metrics_are_the_slow_ones(seed, graded):
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.permutation(30)[:15] for _ in range(6)])
    table, gains = [], []
    for query in range(6):
        relevant = rng.permutation(30)[: rng.integers(1, 14)]
        gains.append({int(r): float(rng.integers(1, 4)) if graded else 1.0 for r in relevant})
        table += [(query, r, gain) for r, gain in gains[-1].items()]
    table = np.array(table)[rng.permutation(len(table))]
    judged = relevance.by_table(table if graded else table[:, :2], np.arange(6), np.arange(30))
    found = relevance.per_query(rows, judged)
    some = np.array([4, 1])
    part = relevance.per_query(rows[some], judged.of(some))
    for query in range(6):
        for name, value in slow_metrics(list(rows[query]), gains[query], 15).items():
            assert found[name][query] == pytest.approx(value), name
    for name, values in part.items():
        np.testing.assert_allclose(values, found[name][some])


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_labels_are_pairs_of_equal_labels(leave_one_out):
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 5, 40)
    own = rng.permutation(40)[:8] if leave_one_out else None
    asked = gallery[own] if leave_one_out else rng.integers(0, 5, 8)
    judged = relevance.by_labels(asked, gallery, own)
    pairs = [
        (q, row)
        for q in range(8)
        for row in range(40)
        if gallery[row] == asked[q] and not (leave_one_out and row == own[q])
    ]
    same = relevance.by_table(np.array(pairs), np.arange(8), np.arange(40))
    np.testing.assert_array_equal(judged.total, same.total)
    np.testing.assert_array_equal(judged.ideal, same.ideal)
    rows = np.stack([rng.permutation(40)[:20] for _ in range(8)])
    rows[0, 5:] = -1
    np.testing.assert_array_equal(judged.gains(rows), same.gains(rows))


def test_agreement_is_with_the_nearest_by_the_new_model():
    rng = np.random.default_rng(0)
    new = rng.normal(size=(30, 4)).astype(np.float32)
    judged = relevance.by_agreement(new[:7], new, Space.of(new, "l2"), np.arange(7))
    for i in range(7):
        near = np.argsort(((new - new[i]) ** 2).sum(axis=1))[1:11]  # the item itself is the nearest
        assert judged.gains(np.tile(near, (7, 1)))[i].sum() == 10 == judged.total[i]


def test_judged_pairs_name_ids_of_any_kind():
    ids, asked = np.array(["a", "b", "c"]), np.array([70, 71])
    judged = relevance.by_table(np.array(["c", "zz"]), asked, ids)
    np.testing.assert_array_equal(judged.total, [1, 0])
    pairs = np.array([["71", "a"], ["71", "b"], ["99", "a"]])
    judged = relevance.by_table(pairs, asked.astype(str), ids)
    np.testing.assert_array_equal(judged.total, [0, 2])
    with pytest.raises(UserError, match="more than once"):
        relevance.by_table(np.array([[70, 1], [70, 1]]), asked, np.arange(3))
    with pytest.raises(UserError, match=r"must have shape \(Q,\)"):
        relevance.by_table(np.zeros((2, 4)), asked, np.arange(3))
    with pytest.raises(UserError, match="judged has 3 ids"):
        relevance.by_table(np.zeros(3), asked, np.arange(3))


def test_groups_and_budgets():
    values = np.concatenate([np.full(10, 0.2), np.full(20, 0.7), np.full(9, 0.0)])
    found = group_values(values, np.repeat([3, 5, 8], [10, 20, 9]))  # the last has too few
    assert found["gap"] == pytest.approx(0.5)
    assert (found["worst"][0], found["best"][0]) == ("3", "5")
    assert group_values(values[:9], np.zeros(9))["gap"] is None
    budget = Budget(10_000, 10.0, 0.5).of(0.36)
    assert budget == {"items": 3600, "hours": pytest.approx(0.1), "cost": pytest.approx(1.8)}
    assert Budget(10).of(1.0) == {"items": 10, "hours": None, "cost": None}


# The whole


def test_text_is_advised_to_ask_both_models(text, text_map, tmp_path):
    found = upgrade.assess(
        text_map,
        of_ids(text, "old"),
        of_ids(text, "new"),
        query_old=text["query_old"],
        query_new=text["query_new"],
        judged=text["query_relevant"],
        groups=np.arange(120) % 3,
        shares=(0.25, 0.5, 0.75),
        gallery_size=10**6,
        items_per_second=100,
        cost_per_1000=0.1,
        out=tmp_path / "report",
    )
    assert (found.by, found.target) == ("judged pairs", "mrr")
    # So few queries cannot tell apart the ways that use both models, but tell all from translated.
    assert found.advice == "upgrade" and found.way in ("blend", "dual", "fused", "cascade")
    assert found.text.startswith("Upgrade (") and found.verdict.text == found.text
    assert found.items == 500 - 128  # without the items that the map was fitted on
    keep, whole = found.point("keep"), found.point("re-embed all")
    # Each model's own search, by the plain definition.
    left = ~np.isin(row_hashes(text["old"]), text_map.fitted)
    for point, name in ((keep, "old"), (whole, "new")):
        near = text[f"query_{name}"].astype(np.float64) @ text[name][left].astype(np.float64).T
        own = near[np.arange(120), np.searchsorted(text["ids"][left], text["query_relevant"])]
        rank = 1 + (near > own[:, None]).sum(axis=1)
        assert point.values["mrr"] == pytest.approx(np.where(rank <= 100, 1 / rank, 0).mean())
        assert point.values["cmc@1"] == pytest.approx((rank == 1).mean())
    hit = [
        (text[f"query_{n}"].astype(np.float64) @ text[n][left].astype(np.float64).T).argmax(axis=1)
        == np.searchsorted(text["ids"][left], text["query_relevant"])
        for n in ("old", "new")
    ]
    assert whole.negative_flips == pytest.approx((hit[0] & ~hit[1]).mean())
    assert whole.gain[0] == pytest.approx(whole.values["mrr"] - keep.values["mrr"])
    assert whole.gain[1] < whole.gain[0] < whole.gain[2]
    # Curves have the right ends.
    for order in ("uncertainty", "random", "certainty"):
        for way, first, last in (
            ("translated", "translate", "re-embed all"),
            ("dual", "keep", "re-embed all"),
            ("fused", "keep", None),
        ):
            curve = found.curve(way, order)
            if (way, order) == ("translated", "certainty"):
                assert not curve  # a map needs help where it is least certain
                continue
            assert [share for share, _ in curve] == [0.0, 0.25, 0.5, 0.75, 1.0]
            assert curve[0][1] == found.point(first).values["mrr"]
            if last:
                assert curve[-1][1] == found.point(last).values["mrr"]
    # The advised path is never below keep.
    on = [p for p in found.points if (p.way, p.order or None) == (found.way, found.order)]
    on = [p for p in on if p.settings == found.verdict.settings]
    assert on and all(point.gain[2] >= 0 for point in on)
    assert any(point.share == found.share for point in on)
    assert whole.budget == {"items": 10**6, "hours": pytest.approx(2.7778, abs=1e-3), "cost": 100}
    assert whole.groups["values"].keys() == {"0", "1", "2"}

    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report == json.loads(json.dumps(found.to_json()))
    assert {"advice", "way", "order", "share", "text", "options"} <= report.keys()
    assert (report["advice"], report["way"], report["text"]) == ("upgrade", found.way, found.text)
    assert report["measures"] == "quality"
    rows = sum(len(row.all_variants()) for row in WAYS.values() if row.done is None)
    curves = 2 + 3 + 3 + 3  # orders of translated, common, dual and fused
    assert len(report["options"]) == len(found.points) == 3 + 5 * curves + rows
    text_of = (tmp_path / "report" / "report.md").read_text()
    assert f"**{found.text}**" in text_of and "fused, certainty" in text_of
    assert "<svg" in (tmp_path / "report" / "report.html").read_text()
    assert (tmp_path / "report" / "curves.png").stat().st_size > 10_000
    again = upgrade.Calibration.load(tmp_path / "report" / "calibration")
    assert again.spread == found.calibration.spread
    with pytest.raises(UserError, match="exists already"):
        upgrade.assess(text_map, text["old"], text["new"], out=tmp_path / "report")


def test_a_worse_model_is_advised_against(text, text_map):
    """The new model's vectors are noisy, so that the advice is to keep the old model."""
    rng = np.random.default_rng(0)

    def worse(vectors):
        noisy = vectors + rng.normal(size=vectors.shape) * 0.12
        return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)

    bad, asked = worse(text["new"]), worse(text["query_new"])
    found = upgrade.assess(
        text_map,
        of_ids(text, "old"),
        EmbeddingSet.of(bad, text["ids"]),
        query_old=text["query_old"],
        query_new=asked,
        judged=text["query_relevant"],
        ways=("translated", "dual"),
        shares=(0.5,),
    )
    assert (found.advice, found.way, found.share) == ("keep", None, None)
    assert found.text.startswith("Don't upgrade")


def test_without_judgements_it_says_what_it_measures(text, text_map):
    found = upgrade.assess(
        text_map, text["old"], text["new"], shares=(0.5,), ways=("translated",), max_queries=100
    )
    assert (found.by, found.target, found.queries) == ("agreement", "recall@10", 100)
    assert found.point("re-embed all").values["recall@10"] == 1.0
    assert (found.advice, found.way) == ("cannot tell", None)
    assert "50 to 200 queries" in found.text and "±5 points with" in found.text
    assert found.faithful and found.to_json()["measures"] == "faithfulness"
    assert any("cannot tell whether that model is better" in note for note in found.notes)
    assert "Faithfulness to the new model" in found.markdown()
    translated = [value for _, value in found.curve("translated", "uncertainty")]
    assert translated[0] < translated[1] < translated[2] == 1.0


def test_labels_judge_where_there_are_some(text, text_map):
    old, new = (
        EmbeddingSet.of(text[name], labels=text["group"].astype(np.int64))
        for name in ("old", "new")
    )
    found = upgrade.assess(text_map, old, new, shares=(), ways=("dual",), judged_calibration=0.3)
    assert (found.by, found.target) == ("labels", "map")
    left = ~np.isin(row_hashes(text["old"]), text_map.fitted)
    labels = text["group"][left]
    alone = np.array([np.sum(labels == label) == 1 for label in labels]).sum()
    assert f"{alone} queries without a relevant item" in " ".join(found.notes)
    assert found.queries == (372 - alone) - int(0.3 * (372 - alone))


def test_mistakes_are_one_line(text, text_map, tmp_path):
    old, new = of_ids(text, "old"), of_ids(text, "new")
    seen = np.isin(row_hashes(text["old"]), text_map.fitted)
    other = EmbeddingSet.of(text["new"], text["ids"], meta={"fingerprint": "other"})
    described = {**text_map.description, "new_fingerprint": "this"}
    marked = upgrade.Map(described, text_map.function, text_map.uncertainty)
    described = {**text_map.description, "old_meta": {"prefix": "passage: "}}
    asked = upgrade.Map(described, text_map.function, text_map.uncertainty)
    prefixed = EmbeddingSet.of(text["old"], text["ids"], meta={"prefix": "query: "})
    longer = EmbeddingSet.of(2 * text["new"], text["ids"])
    known = upgrade.Map(
        text_map.description, text_map.function, text_map.uncertainty, text_map.known
    )
    mixed = EmbeddingSet.of(np.random.default_rng(0).permutation(text["new"]), text["ids"])
    queries = {"query_old": text["query_old"], "query_new": text["query_new"]}
    for arguments, keywords, message in (
        ((text_map, new, old), {}, "has dimension 384, but the map's old model has 256"),
        ((text_map, old, mixed), {}, "known-answer queries fail"),
        ((marked, old, other), {}, "comes from model other, but the new model is this"),
        (
            (asked, prefixed, new),
            {},
            "prefix 'query: ', but the old space of the map has 'passage: '",
        ),
        ((known, old, longer), {}, "normalized False, but the new space of the map has True"),
        ((text_map, text["old"][seen], text["new"][seen]), {}, "fitted on 128 of the 128 items"),
        ((text_map, old, new), {"target": "mapp"}, "unknown target 'mapp'; did you mean 'map'"),
        ((text_map, old, new), {"ways": ("fuse",)}, "did you mean 'fused'"),
        ((text_map, old, new), {"shares": (1.5,)}, "shares must be between 0 and 1"),
        (
            (text_map, old, new),
            {"query_old": text["query_old"]},
            "query_old alone cannot be assessed",
        ),
        ((text_map, old, new), {"judged_calibration": 0.5}, "needs judged pairs or labels"),
        ((text_map, old, new), {"ways": ()}, "ways must be some of translated, bridge"),
        ((text_map, old, new), {"orders": ("uncertanty",)}, "did you mean 'uncertainty'"),
        ((text_map, old, new), {"metric": "l3"}, "unknown metric 'l3'"),
        (
            (None, text["old"][:50], text["new"][:50]),
            {},
            "only 20 of 50 pairs can be used to fit a map",
        ),
        (
            (text_map, old, EmbeddingSet.of(np.ones_like(text["new"]), text["ids"])),
            {},
            "the new model is degenerate, by 500 vectors: not varied",
        ),
        ((text_map, old, new), {"depth": -1}, "depth must be 0 or more, not -1"),
        ((text_map, old, new), {"max_queries": 0}, "max_queries must be 20 or more, not 0"),
        ((text_map, old, new), {"items_per_second": -1.0}, "items_per_second must be 0 or more"),
        ((text_map, old, new), {"groups": np.zeros(7)}, "groups must have shape"),
        (
            (text_map, old, new),
            {**queries, "judged": np.full(120, -1)},
            "0 queries have a relevant item",
        ),
        ((tmp_path, old, new), {}, "no map in"),
    ):
        with pytest.raises(UserError, match=message) as error:
            upgrade.assess(*arguments, **keywords)
        assert "\n" not in str(error.value)


# Commands
