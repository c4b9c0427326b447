"""``fct-jax export``: a way as one file, from a report, maps or pairs."""

import numpy as np
import pytest

from fct_jax import cli
from fct_jax.evaluate.distances import unit_rows
from fct_jax.upgrade import fit
from fct_jax.upgrade.maps.common_space import closed_form_turn
from fct_jax.upgrade.ways.calibration import calibrate
from fct_jax.upgrade.ways.plain import PlainSearch
from fct_jax.upgrade.ways.serving import search

N, QUERIES = 200, 20


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Write pairs, a report's calibration and a bridge; return all vectors."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N + QUERIES, 8))
    old, new = (
        unit_rows(latent @ rng.normal(size=(8, dim)) + 0.3 * rng.normal(size=(N + QUERIES, dim)))
        .astype(np.float32)
        for dim in (10, 12)
    )  # fmt: skip
    np.save("old.npy", old[:N])
    np.save("new.npy", new[:N])
    calibrate(old[:N], new[:N], metric="cosine").save(tmp_path / "report/calibration")
    fit(old[:N], new[:N], method="ridge", direction="backward", uncertainty=False, out="bridge")
    return old, new


def exported(words, vectors):
    """Run the command and search with its file."""
    assert cli.main(["export", *words.split(), "--out", "way.npz"]) == cli.DONE
    old, new = vectors
    migrated = np.arange(N) % 3 == 0
    given = {"query_old": old[N:], "query_new": new[N:], "old": old[:N], "new": new[:N]}
    return PlainSearch("way.npz").search(5, migrated, **given), migrated, given


def test_a_calibrated_way_takes_the_report(here):
    found, migrated, given = exported("cascade --report report --settings depth=9,score=new", here)
    expected = search(
        "cascade", **given, migrated=migrated, k=5, settings={"depth": 9, "score": "new"},
        calibration=calibrate(here[0][:N], here[1][:N], metric="cosine"),
    )  # fmt: skip
    assert (found[1] == expected[1]).mean() > 0.99
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)


def test_what_is_not_given_is_learnt_from_the_pairs(here):
    found, migrated, given = exported("common old.npy new.npy", here)
    expected = search(
        "common", **given, migrated=migrated, k=5, metric="cosine",
        backward=closed_form_turn(here[1][:N], here[0][:N]),
    )  # fmt: skip
    assert (found[1] == expected[1]).mean() > 0.99


def test_a_bridge_is_a_map(here):
    found, *_ = exported("bridge --bridge bridge", here)
    assert (found[1][:, 0] >= 0).all()


def test_mistakes_are_one_line_and_write_nothing(here, tmp_path, capsys):
    np.save("short.npy", np.zeros((3, 12), np.float32))
    for words, message in (
        ("fused", "fused needs a calibration: --report REPORT, that assess wrote, or OLD and NEW"),
        ("bridge", "bridge needs a bridge: --bridge MAP"),
        ("common", "common needs a common space: --map MAP"),
        ("common --map bridge", "bridge has no common space"),
        ("fused --report nowhere", "no calibration in nowhere/calibration"),
        ("common old.npy", "export takes WAY, or WAY OLD NEW, not WAY and 1 names"),
        ("fusd --report report", "unknown way of serving 'fusd'; did you mean 'fused'"),
        ("cascade --report report --settings width=3", "unknown setting of cascade 'width'"),
        ("common old.npy short.npy", "has 200 rows and short.npy 3"),
    ):
        assert cli.main(["export", *words.split(), "--out", "way.npz"]) == 1, words
        said = " ".join(capsys.readouterr().err.split())
        assert message in said and "Traceback" not in said, said
        assert not (tmp_path / "way.npz").exists()
    assert cli.main(["export", "fused", "--report", "report", "--out", "way"]) == 1
    assert "must be named NAME.npz" in capsys.readouterr().err
