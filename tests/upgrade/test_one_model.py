"""Queries by only one model: assessments that need no old model, and those that do."""

import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.upgrade import assess, fit
from fct_jax.upgrade.ways import WAYS

N, QUERIES = 400, 100


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N, 24))
    asked = latent[:QUERIES] + 0.4 * rng.normal(size=(QUERIES, 24))
    made = []
    for dim, noise in ((16, 0.8), (32, 0.4)):
        turn = rng.normal(size=(24, dim)) / 5
        for part in (latent, asked):
            rows = part @ turn + noise * rng.normal(size=(len(part), dim))
            made.append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32))
    return made


def assessed(vectors, **keywords):
    old, _, new, query_new = vectors
    given = {"query_new": query_new, "judged": np.arange(QUERIES), "method": "ridge"}
    return assess(None, old, new, resamples=200, shares=(0.5,), **given | keywords)


def test_without_the_old_model_the_other_ways_are_compared(vectors, tmp_path):
    made = assessed(vectors, out=tmp_path / "report", runs_out=tmp_path / "runs")
    both = {name for name, way in WAYS.items() if way.needs_old_queries}
    assert both == {"blend", "dual", "fused", "cascade", "union_cascade"}
    shown = {point.way for point in made.points}
    same = {"common_translated"}  # "translated", because the common space only rotates
    assert shown == set(WAYS) - both - same | {"translate", "re-embed all"}
    left_out = next(note for note in made.notes if note.startswith("Left out"))
    assert all(name in left_out for name in both) and "query_old" in left_out
    assert made.advice == "cannot tell" and "no queries by the old model" in made.text
    assert made.way in set(WAYS) - both
    start = made.point("translate")
    assert start.gain == (0, 0, 0)
    # The remaining ways have the same figures as with both models.
    whole = assessed(vectors, query_old=vectors[1])
    for name in ("translated", "bridge", "re-embed all", "translated_cascade"):
        for point in (p for p in made.points if p.way == name):
            other = whole.point(point.label, point.order, point.share)
            assert other.values == pytest.approx(point.values), point.label
    text = (tmp_path / "report" / "report.md").read_text()
    assert "against translate, 95 %" in text and "against keep" not in text
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert {"translate.run", "re-embed_all.run"} <= names and "keep.run" not in names


def test_agreement_is_said_to_be_that_of_the_translated_gallery(vectors):
    made = assessed(vectors, judged=None)
    assert made.advice == "cannot tell"
    assert "The translated gallery and the new model agree on" in made.text


def test_the_old_model_is_gone_and_items_ask(vectors):
    """Without any queries, fit and assess work, and say what needs the old model."""
    old, _, new, _ = vectors
    labels = np.arange(N) % 20
    mapping = fit(old[:200], new[:200], method="ridge")
    made = assess(mapping, old, new, labels=labels, resamples=100, shares=(0.5,))
    note = next(note for note in made.notes if "impossible without it" in note)
    assert all(name in note for name in ("blend", "dual", "fused", "cascade"))
    assert {"keep", "fused"} <= {point.way for point in made.points}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ways": ("dual", "fused")}, "none of these ways can be assessed. Left out: dual, fused"),
        ({"threshold": 0.5}, "threshold needs query_old"),
        ({"judged_calibration": 0.5}, "judged_calibration needs query_old"),
    ],
)
def test_mistakes_are_one_line(vectors, changed, message):
    with pytest.raises(UserError, match=message):
        assessed(vectors, **changed)


def test_queries_by_the_old_model_alone_are_refused(vectors):
    with pytest.raises(UserError, match="query_old alone cannot be assessed"):
        assessed(vectors, query_new=None, query_old=vectors[1])
