"""Common mistakes with real vectors are found before anything is written, and named."""

import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.checks.guards import compared
from fct_jax.upgrade.maps.fitting import fit
from fct_jax.upgrade.migration.upgrade import Upgrade
from tools import measure_mistakes
from tools.measure_mistakes import MISTAKES, STEPS, found_by, measure, unit

FEW = [  # each once; the tool measures all of them for the page
    ("gallery", "the second half by another model"),
    ("reembed", "all by another model"),
    ("gallery", "a third not normalised"),
    ("sample_new", "cut to three quarters, not normalised again"),
    ("sample_old", "a prefix before every text"),
    ("reembed", "a prefix before the second half"),
    ("sample", "old and new files swapped"),
]


@pytest.fixture(scope="module")
def pair(text):
    return unit(text["old"].astype(np.float32)), unit(text["new"].astype(np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("place, what", FEW, ids=[": ".join(kind) for kind in FEW])
def test_every_kind_is_found_and_named(pair, place, what):
    (mistake,) = [m for m in MISTAKES if (m.place, m.what) == (place, what)]
    sound, row = measure(*pair, pairs=400, repeats=1, mistakes=[mistake])
    assert not any(sound[step] for step in STEPS), sound["said"]
    assert sum(row[step] for step in STEPS) == 1 and row["named"] == 1, row.get("said")


def test_a_prefix_of_one_side_alone(pair, tmp_path):
    """The sample's texts had a prefix, while those of gallery and service have none (P14)."""
    old, new = pair
    rng = np.random.default_rng(0)
    files = measure_mistakes.files_of(old, new, 400, rng)
    for place, who in (("sample_old", "gallery"), ("sample_new", "reembed")):
        (mistake,) = [
            m for m in MISTAKES if (m.place, m.what) == (place, "a prefix before every text")
        ]
        wrong = measure_mistakes.spoilt(files, mistake, old, new, rng)
        step, said = found_by(wrong, place, tmp_path / place)
        assert step == "apply" and f"{who} and the sample" in said
        assert "differ in a prefix, in preprocessing or in the version of the model" in said
    assert found_by(files, "gallery", tmp_path / "sound") == ("", "")


def test_what_is_the_same_and_what_is_alike():
    rng = np.random.default_rng(0)
    rows = unit(rng.standard_normal((60, 48)))
    bytes_ = np.round(rows * 127 / np.abs(rows).max()) * np.abs(rows).max() / 127
    for same in (rows, rows.astype(np.float16), bytes_):
        held, how = compared(np.asarray(same, np.float32), rows)
        assert held.all() and not how
    longer = rows.copy()
    longer[::2] *= 3
    held, how = compared(longer, rows)
    assert held.tolist() == [False, True] * 30 and "one is normalised, the other is not" in how
    held, how = compared(unit(0.75 * rows + 0.25 * rows[:1]), rows)
    assert not held[1:].any() and "differ in a prefix" in how
    held, how = compared(rows[::-1], rows)
    assert not held.any() and not how
    longer[0] = 0
    longer[1] = np.nan
    assert not compared(longer, rows)[0][:3].any()


def test_ids_that_are_row_numbers_prove_nothing(pair, tmp_path):
    """Other items have the sample's row numbers: this is no error, as such ids name nothing."""
    old, new = pair
    h = fit(old[:200], new[:200], method="ridge")
    gallery = EmbeddingSet.of(old[200:]).write(tmp_path / "old")
    made = Upgrade(tmp_path / "up").apply(
        h, gallery, reembed=EmbeddingSet.of(new[200:]).write(tmp_path / "new")
    )
    assert made.versions.all()
    swapped = EmbeddingSet.of(np.concatenate([old[:100], old[300:]])).write(tmp_path / "half")
    with pytest.raises(UserError, match="ids are shuffled, or another model made some"):
        Upgrade(tmp_path / "up2").apply(h, swapped, unchecked=True)
