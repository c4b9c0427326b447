"""`fct-jax compare`: given models of every kind in one table, and one line for mistakes."""

import json

import numpy as np
import pytest
import tiny_compatible
import tiny_runs

from fct_jax import load_model
from fct_jax.cli import main
from fct_jax.compare import compare
from fct_jax.compare.measures import compatibility_scores
from fct_jax.errors import UserError
from fct_jax.evaluate.backfill import backfill_curve
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.evaluate.orders import backfill_order
from fct_jax.runtime.report import FILES
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.loop import train
from fct_jax.upgrade import fit

pytestmark = pytest.mark.usefixtures("flat_model")

N = 120


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Write vectors of an old, a new and two compatible models, and their labels."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    labels = np.arange(N) % 6
    centres, noise = rng.standard_normal((6, 8)), rng.standard_normal((N, 8))
    new = centres[labels] + 0.6 * noise
    old = centres[labels] + 0.9 * noise + 0.8 * rng.standard_normal((N, 8))
    turned = new @ np.linalg.qr(rng.standard_normal((8, 8)))[0]
    made = {"old": old, "new": turned, "good": (new + old) / 2, "wide": np.tile(turned, 2)}
    for name, vectors in made.items():
        meta = {"fingerprint": name}
        EmbeddingSet.of(vectors.astype(np.float32), labels=labels, meta=meta).write(folder / name)
    return folder


def map_of(found, query, gallery):
    vectors = [np.asarray(found[name].vectors) for name in (query, gallery)]
    return retrieval_metrics(*vectors, found[query].labels, metric="cosine")["map"]


def test_vectors_by_hand(sets, tmp_path, capsys):
    """Every number of the table comes from the function that defines it."""
    found = {path.name: EmbeddingSet.read(path) for path in sets.iterdir()}
    made = compare(
        sets / "old",
        {"good": sets / "good", "as it is": "identity"},
        new=sets / "new",
        title="hand",
        out=tmp_path / "report",
    )
    rows = made.tests["vectors"]
    old, star = map_of(found, "old", "old"), map_of(found, "new", "new")
    own, cross = map_of(found, "good", "good"), map_of(found, "good", "old")
    assert rows["old"]["self"] == pytest.approx(old)
    assert rows["good"]["self"] == pytest.approx(own)
    assert rows["good"]["cross"] == pytest.approx(cross)
    assert rows["as it is"] == rows["new alone"]
    assert made.scores()["good"]["p_1"] == pytest.approx(
        compatibility_scores(own, cross, old, star)["p_1"]
    )
    assert cross > old > rows["new alone"]["cross"]
    assert "hand: good beats the old model's own search" in made.verdict()
    assert {path.name for path in (tmp_path / "report").iterdir()} == set(FILES)
    words = ["--old", sets / "old", "--new", sets / "new", "--models", f"good={sets / 'good'}"]
    capsys.readouterr()
    assert main(["compare", *map(str, words), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["tests"]["vectors"]["good"] == rows["good"]
    assert "P_comp" in shown.err


def test_files_of_labels_and_arrays(sets, tmp_path):
    found = {path.name: EmbeddingSet.read(path) for path in sets.iterdir()}
    for name, one in found.items():
        np.save(tmp_path / f"{name}.npy", one.vectors)
    np.save(tmp_path / "labels.npy", found["old"].labels)
    expected = compare(sets / "old", {"good": sets / "good"}).tests
    from_files = compare(
        tmp_path / "old.npy", {"good": tmp_path / "good.npy"}, labels=tmp_path / "labels.npy"
    )
    assert from_files.tests == expected
    arrays = {name: np.asarray(found[name].vectors) for name in ("old", "good")}
    assert compare(arrays["old"], {"good": arrays["good"]}, labels=found["old"].labels).tests == (
        expected
    )
    # Without a new model trained alone there is nothing to scale by; the rest remains.
    assert from_files.scores()["good"]["p_1"] is None
    assert "| good |" in from_files.markdown()


def test_a_new_model_of_another_size_cannot_search_the_old_gallery(sets):
    made = compare(sets / "old", {"good": sets / "good"}, new=sets / "wide")
    row = made.tests["vectors"]["new alone"]
    assert "cross" not in row and row["self"] > 0
    assert made.scores()["new alone"]["p_1"] is None and made.scores()["good"]["p_1"] > 0
    main_table = made.tables()[0]
    (line,) = [row for row in main_table.rows if row[0] == "new alone"]
    assert line[2:] == ["", "", "", "", ""]


def test_maps_stand_beside_models(sets, tmp_path):
    fit(sets / "old", sets / "new", method="ridge", out=tmp_path / "map")
    made = compare(sets / "old", {"ridge": tmp_path / "map"}, new=sets / "new")
    row = made.tests["vectors"]["ridge"]
    assert row["self"] == made.tests["vectors"]["new alone"]["self"]
    assert row["cross"] > made.tests["vectors"]["old"]["self"] - 0.1
    with pytest.raises(UserError, match="name it .new."):
        compare(sets / "old", {"ridge": tmp_path / "map"})
    with pytest.raises(UserError, match="another new model .new. than .* .good."):
        compare(sets / "old", {"ridge": tmp_path / "map"}, new=sets / "good")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, flat_model):
    """Make runs of an old model, a new one trained alone, BCT, LCE, FCT and FastFill."""
    folder = tmp_path_factory.mktemp("runs")
    subset = {"data__subset": "new images 0.3"}
    old = folder / "old"
    train(tiny_compatible.config(data__subset="old images 0.3", seed=5), old)
    train(tiny_compatible.config(**subset), folder / "new")
    for method in ("bct", "lce"):
        config = tiny_compatible.config(method=method, old=str(old), **subset)
        if method == "lce":
            config.compatibility.transformation_blocks = 1
        train(config, folder / method)
    for kind in ("fct", "fastfill"):
        config = tiny_runs.transformation(old, folder / "new", kind, epochs=20, **subset)
        train(config, folder / kind)
    return folder


@pytest.mark.slow
def test_both_families_in_one_table(runs, tmp_path, capsys):
    names = ("bct", "lce", "fct", "fastfill")
    words = ["--old", runs / "old", "--new", runs / "new", "--data", "digits"]
    words += ["--models", ",".join(f"{name}={runs / name}" for name in names)]
    assert main(["compare", *map(str, words), "--out", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if "/" not in line) <= 80
    written = json.loads((tmp_path / "report" / "report.json").read_text())["comparisons"]
    rows = written["digits"]["tests"]["digits"]
    assert list(rows) == ["old", "new alone", *names]
    for name in names:
        assert rows[name]["cross"] > rows["new alone"]["cross"] + 0.2, name
        assert {"nfr", "gap", "curve"} <= rows[name].keys()
    assert rows["fct"]["self"] == rows["new alone"]["self"] != rows["bct"]["self"]
    # FastFill has a second curve, in the order of its uncertainty.
    assert [name for name in names if "curve by uncertainty" in rows[name]] == ["fastfill"]
    sets = {
        name: EmbeddingSet.read(next((runs / name / "embeddings").glob("*validation*")))
        for name in ("old", "new")
    }

    moved, uncertainty = load_model(runs / "fastfill").transform(sets["old"].vectors)
    curve = backfill_curve(
        sets["new"].vectors,
        moved,
        sets["new"].labels,
        backfill_order("uncertainty", uncertainty=uncertainty),
        steps=3,
        metric="cosine",
    )
    assert rows["fastfill"]["curve by uncertainty"] == pytest.approx(curve.values["map"], abs=1e-3)


def test_mistakes_in_one_line(sets, tmp_path, capsys):
    old, good = str(sets / "old"), f"good={sets / 'good'}"
    EmbeddingSet.of(np.ones((3, 8), np.float32)).write(tmp_path / "few")
    for words, message in (
        ([], "compare needs --old, or CONFIG"),
        (["--old", old], "there is no model to compare"),
        (["--old", old, "--models", "good"], "write NAME=WHERE"),
        (["--old", old, "--models", f"{good},{good}"], "names 'good' twice"),
        (["--old", old, "--models", f"old={sets / 'good'}"], "cannot be called 'old'"),
        (["--old", old, "--models", good, "--seeds", "3"], "--seeds belongs to a benchmark"),
        (["digits_compatible", "--old", old], "--old belongs to given models"),
        (["digits_compatable"], "did you mean digits_compatible?"),
        (["--old", old, "--models", "x=/no/where"], "/no/where does not exist"),
        (["--old", old, "--models", f"wide={sets / 'wide'}"], "wide has embeddings of 16"),
        (["--old", old, "--models", good, "--shares", "0.5,0.2"], "shares must grow"),
        (["--old", old, "--models", good, "--data", "digitz"], "did you mean 'digits'"),
        (["--old", str(tmp_path / "few"), "--models", good], "has no labels"),
        (["--old", old, "--models", f"few={tmp_path / 'few'}"], "3"),
        (["--old", old, "--modles", good], "did you mean --models?"),
    ):
        capsys.readouterr()
        assert main(["compare", *words]) == 1, words
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and message in said[0], said


def test_nothing_is_overwritten(sets, tmp_path):
    (tmp_path / "report").mkdir()
    with pytest.raises(UserError, match="exists already"):
        compare(sets / "old", {"good": sets / "good"}, out=tmp_path / "report")
