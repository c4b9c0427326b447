"""Searching half-migrated galleries of real text vectors: how well, and by the recipe."""

import re
from pathlib import Path

import numpy as np

from fct_jax.upgrade.ways import relevance
from fct_jax.upgrade.ways.calibration import calibrate
from fct_jax.upgrade.ways.judged_weights import fit_weights
from fct_jax.upgrade.ways.serving import search


def mrr(text, way, migrated, made, translated=None):
    _, rows = search(
        way,
        text["query_old"],
        text["query_new"],
        text["old"],
        text["new"],
        migrated,
        100,
        made,
        translated=translated,
    )
    judged = relevance.by_table(text["query_relevant"], np.arange(120), text["ids"])
    return relevance.per_query(rows, judged)["mrr"].mean()


def raw_mix(text, migrated):
    old, new = (
        text[f"query_{name}"].astype(np.float32) @ text[name].astype(np.float32).T
        for name in ("old", "new")
    )
    scores = np.where(migrated, new, old)
    place = np.searchsorted(text["ids"], text["query_relevant"])
    own = scores[np.arange(120), place][:, None]
    return np.mean(1 / (1 + (scores > own).sum(axis=1)))


def test_calibrated_beats_uncalibrated_on_text(text):
    made = calibrate(text["old"], text["new"])
    rng = np.random.default_rng(0)
    shares = (0.25, 0.5, 0.75)
    states = [rng.permutation(500) < share * 500 for share in shares for _ in range(4)]
    raw = np.mean([raw_mix(text, state) for state in states])
    dual = np.mean([mrr(text, "dual", state, made) for state in states])
    fused = np.mean([mrr(text, "fused", state, made) for state in states])
    keep = mrr(text, "dual", np.zeros(500, bool), made)
    assert raw < dual < fused
    assert dual > keep - 0.01
    assert fused > keep + 0.01
    whole = mrr(text, "dual", np.ones(500, bool), made)
    assert mrr(text, "fused", np.ones(500, bool), made) > max(keep, whole) + 0.02


def test_more_items_make_the_better_calibration(text):
    """A calibration that has grown with the migration keeps dual above today's quality."""
    keep = mrr(text, "dual", np.zeros(500, bool), calibrate(text["old"], text["new"]))
    rng = np.random.default_rng(1)
    sample = rng.permutation(500)[:60]
    found = {"sample": [], "grown": []}
    for share in (0.25, 0.5, 0.75):
        for _ in range(3):
            state = rng.permutation(500) < share * 500
            grown = np.union1d(sample, np.flatnonzero(state))
            for name, rows in (("sample", sample), ("grown", grown)):
                found[name].append(
                    mrr(text, "dual", state, calibrate(text["old"][rows], text["new"][rows]))
                )
    assert np.mean(found["grown"]) > np.mean(found["sample"])
    assert np.mean(found["grown"]) > keep - 0.005


def test_judged_queries_help_where_the_models_are_unequal(text):
    """The old model knows hardly anything, and should get less weight than the new one."""
    rng = np.random.default_rng(0)
    poor = dict(text)
    noise = rng.normal(size=(256, 24)) / 16
    for name in ("old", "query_old"):
        poor[name] = text[name].astype(np.float32) @ noise.astype(np.float32)
    plain = calibrate(poor["old"], poor["new"])
    judged = relevance.by_table(text["query_relevant"], np.arange(120), text["ids"])
    learn, rest = np.arange(0, 120, 2), np.arange(1, 120, 2)
    weights = fit_weights(
        (poor["old"][:0], poor["new"][:0]),
        poor["query_old"][learn],
        poor["query_new"][learn],
        poor["old"],
        poor["new"],
        judged.of(learn),
    )
    assert weights.fused_new > 1.5 * weights.fused_old
    learnt = calibrate(poor["old"], poor["new"], weights=weights)
    every = np.ones(500, bool)
    queries = poor["query_old"][rest], poor["query_new"][rest]
    before, after = (
        relevance.per_query(
            search("fused", *queries, poor["old"], poor["new"], every, 100, made)[1],
            judged.of(rest),
        )["mrr"].mean()
        for made in (plain, learnt)
    )
    assert after > before + 0.02


def test_the_recipe_for_an_index_of_ones_own_is_search(text):
    """The code follows docs/upgrade.md to the letter, on a calibration that chose its metric."""
    page = (Path(__file__).parents[2] / "docs" / "upgrade.md").read_text()
    recipe = next(
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "both_index" in block
    )
    floats = {name: text[name].astype(np.float32) for name in ("old", "new")}
    queries = [text[f"query_{name}"].astype(np.float32) for name in ("old", "new")]
    migrated = np.random.default_rng(0).random(500) < 0.4
    made = calibrate(text["old"][::2], text["new"][::2])
    assert (made.old.metric, made.new.metric) == ("cosine", "cosine")
    found = {
        "calibration": made,
        "gallery": [floats["old"], floats["new"]],
        "queries": queries,
        "migrated": migrated,
        "np": np,
    }
    exec(recipe, found)
    _, rows = search("fused", *queries, floats["old"], floats["new"], migrated, 10, made)
    # Rows whose scores are equal up to rounding may change places.
    assert np.mean(found["own_rows"] == rows) > 0.995
