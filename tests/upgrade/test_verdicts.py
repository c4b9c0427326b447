"""Verdicts on made-up figures, and on pairs of models whose truth is known."""

import known_truth as truth
import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.upgrade import assess
from fct_jax.upgrade.assessment.verdict import (
    Bootstrap,
    Option,
    queries_needed,
    recommend,
    without_evidence,
)
from fct_jax.upgrade.ways import WAYS

SHARES = (0.0, 0.5, 1.0)


def made_up(levels, whole, queries=400, seed=0):
    """Return options around given means, with shared noise and a little of their own."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=queries) * 0.1

    def around(level):
        own = rng.normal(size=queries) * 0.01
        return level + shared + own - own.mean()

    options = [
        Option(WAYS[way], "uncertainty", SHARES, np.stack([around(level) for level in path]))
        for way, path in levels.items()
    ]
    return options, around(0.5), around(whole), Bootstrap(queries, 300, 0)


@pytest.mark.parametrize(
    ("levels", "whole", "advice", "way", "share"),
    [
        # Translated dips below keep and is excluded, though it ends highest; dual is safe.
        ({"translated": (0.1, 0.2, 0.6), "dual": (0.5, 0.52, 0.55)}, 0.5, "upgrade", "dual", 1.0),
        # Both are safe and alike: the simpler one wins. Half-way brings nearly all of the gain.
        ({"fused": (0.5, 0.6, 0.6), "dual": (0.5, 0.6, 0.6)}, 0.6, "upgrade", "dual", 0.5),
        ({"translated": (0.6, 0.6, 0.6)}, 0.6, "upgrade", "translated", 0.0),
        # Among equal ways, the one with the fewest items to re-embed wins.
        ({"dual": (0.5, 0.5, 0.6), "fused": (0.5, 0.6, 0.6)}, 0.6, "upgrade", "fused", 0.5),
        # Nothing can be gained, as the intervals show: keep.
        ({"fused": (0.5, 0.5, 0.5)}, 0.5, "keep", None, None),
        ({"dual": (0.5, 0.49, 0.45)}, 0.45, "keep", None, None),
        # The new model is better, but every way to it goes through a valley.
        ({"dual": (0.5, 0.4, 0.6)}, 0.6, "upgrade", "re-embed all", 1.0),
    ],
)
def test_verdicts(levels, whole, advice, way, share):
    found = recommend(*made_up(levels, whole))
    assert (found.advice, found.way, found.share) == (advice, way, share), found
    assert found.text


def test_a_promise_that_is_not_sure_is_no_advice():
    rng = np.random.default_rng(0)
    keep = rng.random(60)
    change = rng.normal(size=60) * 0.3
    change += 0.05 - change.mean()  # 5 points, and a standard error of 4
    option = Option(WAYS["dual"], "random", SHARES, np.stack([keep, keep + change, keep + change]))
    found = recommend([option], keep, keep + change, Bootstrap(60, 500, 0))
    assert found.advice == "cannot tell" and found.way is None
    assert found.needed[0.01] == pytest.approx((1.96 * change.std() / 0.01) ** 2, abs=1)
    assert f"±1 points with {found.needed[0.01]:,}" in found.text
    # With sixteen times as many queries, the same differences are significant.
    again = [np.tile(v, 16) for v in (keep, keep + change)]
    option = Option(WAYS["dual"], "random", SHARES, np.stack([again[0], again[1], again[1]]))
    found = recommend([option], again[0], again[1], Bootstrap(960, 500, 0))
    assert found.advice == "upgrade"


def test_a_test_that_is_too_easy_tells_nothing():
    rng = np.random.default_rng(0)
    keep = np.ones(200)
    keep[:3] = 0.5
    option = Option(WAYS["dual"], "random", SHARES, np.stack([keep, keep, keep]))
    found = recommend([option], keep, keep, Bootstrap(200, 100, 0))
    assert found.advice == "cannot tell" and "this test is too easy" in found.text
    # A worse new model is still recognised.
    worse = keep - (rng.random(200) < 0.3) * 0.5
    option = Option(WAYS["dual"], "random", SHARES, np.stack([keep, worse, worse]))
    assert recommend([option], keep, worse, Bootstrap(200, 100, 0)).advice == "keep"


def test_bounds_hold_for_all_options_at_once():
    """Of 100 worlds without any difference, hardly one shows a sure gain among 60 options."""
    wrong = alone = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(60, 100)) * rng.random((60, 1)) + 0.3 * rng.normal(size=100)
        low, high = Bootstrap(100, 300, seed).bounds(values)
        wrong += (low > 0).any()
        alone += low[0] > 0
        assert (low <= values.mean(axis=1)).all() and (high >= values.mean(axis=1)).all()
    # Each errs in one of a hundred: a binomial with mean 1 exceeds 6 with a chance of 1e-5.
    assert wrong <= 6 and alone <= 6
    same = np.zeros((3, 50))
    np.testing.assert_array_equal(Bootstrap(50, 100, 0).bounds(same), np.zeros((2, 3)))


def test_bootstrap_intervals_are_those_of_normal_means():
    values = np.random.default_rng(0).normal(size=400)
    low, high = Bootstrap(400, 4000, 0).interval(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_without_evidence_it_cannot_tell_and_says_what_would():
    rng = np.random.default_rng(0)
    overlap = rng.integers(0, 11, 50) / 10
    found = without_evidence(overlap, "the queries that were given")
    assert found.advice == "cannot tell"
    for word in ("labels", "groups", "near-duplicates", "clicks", "50 to 200"):
        assert word in found.text
    # Simulate one relevant item, drawn from the results of both, and the recall@10 difference.
    differences = []
    for common in (10 * overlap).round().astype(int):
        for _ in range(400):
            item = rng.integers(20 - common)
            in_old, in_new = item < 10, item >= 10 - common
            differences.append(float(in_new) - float(in_old))
    needed = 1.96**2 * np.var(differences) / 0.05**2
    assert found.needed[0.05] == pytest.approx(needed, rel=0.05)
    assert queries_needed(0.25)[0.05] == int(np.ceil(1.96**2 * 0.25 / 0.05**2))


def assessed(found: truth.Pair, yardstick: str, **keywords):
    """Return the advice on a pair by a yardstick, or "refused" with the reason."""
    given = {
        "labels": {"labels": found.labels},
        "groups": {"groups": found.labels},
        "judged pairs": {
            "query_old": found.query_old,
            "query_new": found.query_new,
            "judged": found.wanted,
        },
        "queries alone": {"query_old": found.query_old, "query_new": found.query_new},
        "nothing": {},
    }[yardstick]
    try:
        made = assess(
            None,
            found.old,
            found.new,
            method="ridge",
            shares=(0.25, 0.5, 0.75),
            max_queries=300,
            resamples=500,
            **given,
            **keywords,
        )
    except UserError as error:
        return "refused", str(error)
    return made.advice, made


RIGHT = {
    "better": {"upgrade"},
    "equal": {"keep"},
    "worse": {"keep"},
    "dead": {"keep", "refused"},
    "collapsed": {"keep", "refused"},
}


def check_truth(name: str, known: str, yardstick: str, seed: int) -> str:
    advice, made = assessed(truth.pair(name, known, seed), yardstick)
    told = made if advice == "refused" else made.text
    assert advice in {"cannot tell", *RIGHT[known]}, (name, known, yardstick, seed, told)
    if yardstick in ("queries alone", "nothing") and advice != "refused":
        assert advice == "cannot tell" and made.faithful
    if advice == "upgrade":
        # The advised path is nowhere below keep by more than its interval.
        path = [p for p in made.points if (p.way, p.order or None) == (made.way, made.order)]
        path = [p for p in path if p.settings == made.verdict.settings]
        assert all(point.gain[2] >= 0 for point in path)
    return advice


NAMES = ("synthetic", "digits", "emoji", "text")
EVIDENCE = ("labels", "judged pairs", "groups")
# Neighbours in either list get odd and even numbers in turn.
TRUTHS_AND_NAMES = {
    (known, name): i + j for i, known in enumerate(truth.TRUTHS) for j, name in enumerate(NAMES)
}


def skip_without_vectors(name: str) -> None:
    if name in ("emoji", "text") and not truth.SHARED.is_dir():
        pytest.skip("the shared vectors are not there")


@pytest.mark.slow(minutes=0.02)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("known", truth.TRUTHS)
@pytest.mark.parametrize("name", NAMES)
def test_advice_is_right_or_cannot_tell(name, known, seed):
    """Twenty pairs are judged by all evidence, and forty more by labels or by judged pairs."""
    skip_without_vectors(name)
    kinds = EVIDENCE if seed == 0 else (EVIDENCE[(TRUTHS_AND_NAMES[known, name] + seed) % 2],)
    said = {yardstick: check_truth(name, known, yardstick, seed) for yardstick in kinds}
    # Labels of 600 digits are enough evidence: "cannot tell" is no excuse.
    if name == "digits" and "labels" in said:
        assert said["labels"] in RIGHT[known]


@pytest.mark.slow(minutes=0.02)
@pytest.mark.parametrize("known", truth.TRUTHS)
@pytest.mark.parametrize("name", NAMES)
def test_without_evidence_no_pair_gets_advice(name, known):
    """Half of the pairs come with queries that nobody judged, half with nothing at all."""
    skip_without_vectors(name)
    yardstick = ("queries alone", "nothing")[TRUTHS_AND_NAMES[known, name] % 2]
    check_truth(name, known, yardstick, 0)


@pytest.mark.slow(minutes=0.02)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", NAMES)
def test_what_is_advised_is_not_below_keep_for_other_queries(name, seed):
    """For twenty pairs and seeds, half of the queries advise and the other half judge this."""
    skip_without_vectors(name)
    rng = np.random.default_rng(seed)
    found = truth.pair(name, ("better", "equal", "worse")[seed % 3], seed)
    half = rng.permutation(len(found.wanted)) % 2 == 0
    parts = [
        truth.Pair(
            found.old,
            found.new,
            found.labels,
            found.query_old[some],
            found.query_new[some],
            found.wanted[some],
        )
        for some in (half, ~half)
    ]
    advice, made = assessed(parts[0], "judged pairs")
    if advice != "upgrade":
        return
    _, judge = assessed(parts[1], "judged pairs")
    path = [p for p in judge.points if (p.way, p.order or None) == (made.way, made.order)]
    path = [p for p in path if p.settings == made.verdict.settings and p.share <= made.share]
    assert path
    for point in path:
        assert point.gain[2] >= 0, (name, seed, made.text, point)
