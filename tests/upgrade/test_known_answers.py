"""The known-answer gate: when it refuses, when it accepts, and when it cannot tell."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.upgrade.checks.evidence import agreement
from fct_jax.upgrade.checks.known_answers import (
    CANNOT_TELL,
    FITS,
    UNKNOWN,
    WRONG,
    Answer,
    Expected,
    ask,
    ask_pairing,
    check_known_answers,
)
from fct_jax.upgrade.maps.fitting import fit
from tools import measure_gate

SHARE = 0.02  # largest share of false alarms, and of misses


@pytest.fixture(scope="module")
def sample():
    return measure_gate.text_sample()


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), count=st.integers(8, 40))
def test_agreement_has_the_deviation_that_it_says(seed, count):
    """The deviation agrees with permutations drawn one by one, also for clustered items."""
    rng = np.random.default_rng(seed)
    old = rng.standard_normal((3, 5))[rng.integers(3, size=count)] + rng.standard_normal((count, 5))
    new = old @ rng.standard_normal((5, 7)) + rng.standard_normal((count, 7))
    drawn = [agreement(old, rng.permutation(new)) for _ in range(400)]
    values = np.array([found.deviations for found in drawn])
    # For 400 draws the mean errs by 0.05, and the deviation, with heavy tails, by 0.1.
    assert abs(values.mean()) < 0.25 and abs(values.std() - 1) < 0.4
    assert {round(found.deviation, 9) for found in drawn} == {
        round(agreement(old, new).deviation, 9)
    }


@pytest.mark.slow
@pytest.mark.parametrize("with_known", [True, False])
def test_false_alarms_and_misses_are_rare(sample, with_known):
    """A small grid of tools.measure_gate, whose table is in docs/known-answers.md.

    A random map without tested pairs is left out, as it is rightly refused. Partly shuffled pairs
    are noticed if pairs were tested and the map is good (next test).
    """
    totals = collections.Counter()
    for data in (sample, measure_gate.digits()):
        for fitted in (0, 8, 100, None) if with_known else (8, 100, None):
            for items in (16, 128):
                totals += measure_gate.measure_map(*data, fitted, items, 2, with_known)
    for truth in ("right", "shuffled", "shifted", "other model"):
        mine = {outcome: n for (t, outcome), n in totals.items() if t == truth}
        bad = mine.get(WRONG if truth == "right" else FITS, 0)
        assert bad <= SHARE * sum(mine.values()), (truth, mine)
        # A gate must decide at times; with 128 items it mostly does, with 16 seldom.
        told = mine.get(FITS if truth == "right" else WRONG, 0)
        assert told >= 0.4 * sum(mine.values()), (truth, mine)


@pytest.mark.slow
def test_some_pairs_shuffled(sample):
    """With a fair map, shuffling half of the pairs shows in how well items find themselves."""
    totals = collections.Counter()
    for fitted in (100, None):
        totals += measure_gate.measure_map(*sample, fitted, 128, 2)
    mine = {outcome: n for (truth, outcome), n in totals.items() if truth == "half shuffled"}
    assert mine == {WRONG: 4}


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_pairs_before_a_map_is_fitted(sample, noise):
    totals = collections.Counter()
    for items in (16, 64, 256):
        totals += measure_gate.measure_pairs(*sample, items, 4, noise)
    assert totals["right", WRONG] == 0
    assert totals["shuffled", FITS] == totals["shifted", FITS] == 0
    assert totals["shuffled", WRONG] >= 4  # those of 256


def test_a_weak_map_cannot_tell_and_says_how_many_items_would(sample, capsys):
    """As in the tutorial: right pairs, a map of 8 pairs, few items. It goes on with a warning."""
    old, new = sample
    weak = measure_gate.fitted_map(old, new, 8, None)
    tested, rest = slice(8, 264), slice(264, 280)
    expected = Expected.of(weak(old[tested]), old[tested], new[tested], "l2", 16)
    answer = ask(old[rest], weak(old[rest]), np.roll(new[rest], 5, axis=0), "l2", expected)
    assert answer.outcome == CANNOT_TELL and answer.would_do > 16
    assert check_known_answers(answer, "the batch") == 16
    said = capsys.readouterr().err
    assert "warning: known answers cannot tell whether the batch is right, with 16 items" in said
    assert f"about {answer.would_do} items would be enough" in said
    # With that many items, it can tell.
    enough = min(answer.would_do, 236)
    rest = slice(264, 264 + enough)
    expected = Expected.of(weak(old[tested]), old[tested], new[tested], "l2", enough)
    assert ask(old[rest], weak(old[rest]), new[rest], "l2", expected).outcome == FITS


def test_what_is_wrong_is_named(sample):
    old, new = sample
    shifted = ask_pairing(old[:100], np.roll(new[:100], -3, axis=0))
    assert shifted.outcome == WRONG and "with the rows shifted by 3" in shifted.why
    turned = ask_pairing(old[:100], new[:100][::-1])
    assert turned.outcome == WRONG and "with the rows reversed" in turned.why
    rng = np.random.default_rng(0)
    other = ask_pairing(old, rng.permutation(new))
    assert other.outcome == WRONG and "shuffled" in other.why
    turn = np.linalg.qr(rng.standard_normal((384, 384)))[0]
    expected = Expected.of(new, old, new, "l2", 100)
    model = ask(old[:100], new[:100], new[:100] @ turn, "l2", expected)
    assert model.outcome == WRONG and "another model's" in model.why
    # In reverse: old vectors in place of the new ones.
    back = ask(
        new[:100] @ turn, new[:100] @ turn @ turn, new[:100], "l2", UNKNOWN, lambda x: x @ turn
    )
    assert back.outcome == WRONG and back.why.startswith("wrong direction")
    with pytest.raises(
        UserError, match="known-answer queries fail on it, with 100 items: wrong dir"
    ):
        check_known_answers(back, "it")


def test_items_that_are_all_alike_answer_nothing():
    same = np.ones((30, 4)) + 1e-9 * np.random.default_rng(0).standard_normal((30, 4))
    new = same.copy()
    new[0] += 1
    answer = ask(same, new, new)
    assert answer == Answer(CANNOT_TELL, 0, "the new vectors are too much alike")


def test_fit_refuses_before_it_trains(sample, capsys):
    old, new = (part.astype(np.float32) for part in sample)
    with pytest.raises(UserError, match="fail on the sample, with 500 items: .* is shuffled"):
        fit(old, np.random.default_rng(0).permutation(new), method="ridge")
    assert "fitting" not in capsys.readouterr().err
    # 30 pairs are too few to tell; a map is fitted on them, with a warning.
    few = np.random.default_rng(0).permutation(new[:30])
    fit(old[:30], few, method="ridge")
    assert "cannot tell whether the sample is right, with 30 items" in capsys.readouterr().err
