"""The evaluate command on EmbeddingSets whose metrics are known, and its report."""

import json

import numpy as np
import pytest
import tiny_runs
from PIL import Image

from fct_jax.errors import UserError
from fct_jax.evaluate.backfill import BackfillCurve, backfill_curve
from fct_jax.evaluate.command import evaluate
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.evaluate.orders import backfill_order
from fct_jax.evaluate.report import Evaluation
from fct_jax.runtime.report import FILES
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.loop import train
from fct_jax.upgrade.maps.fitting import fit

N, CLASSES = 90, 6


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Write sets old, new and moved (with uncertainties) of one gallery, and queries."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    labels = np.arange(N) % CLASSES
    centres = rng.standard_normal((CLASSES, 8))
    noise = rng.standard_normal((N, 8))
    size = rng.uniform(0.2, 2.5, (N, 1))
    new = (centres[labels] + 0.4 * noise).astype(np.float32)
    moved = (new + size * rng.standard_normal((N, 8))).astype(np.float32)
    old = (new[:, :5] + rng.standard_normal((N, 5))).astype(np.float32)
    uncertainty = np.log(size[:, 0]).astype(np.float32)
    write = {
        "old": EmbeddingSet.of(old, labels=labels, meta={"fingerprint": "o"}),
        "new": EmbeddingSet.of(new, labels=labels, meta={"fingerprint": "n"}),
        "moved": EmbeddingSet.of(
            moved, labels=labels, uncertainty=uncertainty, meta={"fingerprint": "n"}
        ),
        "plain": EmbeddingSet.of(moved, labels=labels, meta={"fingerprint": "n"}),
        "query_old": EmbeddingSet.of(old[:20], labels=labels[:20], meta={"fingerprint": "o"}),
        "query_new": EmbeddingSet.of(new[:20] + 0.1, labels=labels[:20], meta={"fingerprint": "n"}),
    }
    for name, made in write.items():
        made.write(folder / name)
    return folder


def config_of(sets, transformed="FastFill=moved,FCT=plain", **changes):
    pairs = [part.split("=") for part in transformed.split(",") if part]
    placed = ",".join(f"{name}={sets / place}" for name, place in pairs)
    return tiny_runs.evaluation(sets / "old", sets / "new", placed, **changes)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_numbers_are_those_of_the_functions(sets, tmp_path, capsys, metric):
    report = evaluate(config_of(sets, metric=metric, per_class=True), tmp_path / "report")
    found = {name: EmbeddingSet.read(sets / name) for name in ("old", "new", "moved")}
    labels = found["new"].labels
    expected = {
        "old/old": ("old", "old"), "new/new": ("new", "new"), "FastFill new/old": ("new", "moved")
    }  # fmt: skip
    for row, (query, gallery) in expected.items():
        right = retrieval_metrics(
            found[query].vectors, found[gallery].vectors, labels, metric=metric
        )
        assert report.rows[row] == pytest.approx(right)
        by_class = report.per_class[row]
        assert list(by_class) == list(range(CLASSES))
        mean = np.mean([values["map"] for values in by_class.values()])  # classes of equal size
        assert mean == pytest.approx(right["map"])
    order = backfill_order("uncertainty", uncertainty=found["moved"].uncertainty)
    curve = backfill_curve(
        found["new"].vectors, found["moved"].vectors, labels, order, metric=metric
    )
    assert report.auc()["FastFill · uncertainty"]["map"] == pytest.approx(curve.auc("map"))
    assert "FCT · uncertainty" not in report.auc()
    assert report.auc()["FastFill · random"] == report.auc()["FCT · random"]
    random = [
        backfill_curve(
            found["new"].vectors, found["moved"].vectors, labels,
            backfill_order("random", n=N, seed=seed), metric=metric,
        ).auc("map")
        for seed in range(3)
    ]  # fmt: skip
    assert report.auc()["FCT · random"]["map"] == pytest.approx(np.mean(random))

    shown = capsys.readouterr().out
    folder = tmp_path / "report"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    written = json.loads((folder / "report.json").read_text())
    assert written["retrieval"]["new/new"] == report.rows["new/new"]
    assert len(written["curves"]["FCT"]["random"]["map"]) == 22
    assert written["settings"]["metric"] == metric
    cell = f"{100 * report.rows['old/old']['map']:.1f}"
    for text in (shown, *((folder / name).read_text() for name in ("report.md", "report.html"))):
        assert cell in text and "The new model retrieves better" in text
    with Image.open(folder / "curves.png") as picture:
        assert picture.size[0] > 800


def test_words_follow_the_numbers():
    def words(old, new, cross, areas):
        curves = {
            order: BackfillCurve(np.array([0.0, 1.0]), {"map": np.array([area, area])})
            for order, area in areas.items()
        }
        rows = {"old/old": {"map": old}, "new/new": {"map": new}, "F new/old": {"map": cross}}
        return Evaluation("l2", (1,), 0, rows, {"F": curves}).verdict()

    first, second = words(0.3, 0.5, 0.45, {"random": 0.46, "uncertainty": 0.48})
    assert "better than the old one: mAP 50.0 % against 30.0 %" in first
    assert "F: 45.0 % before anything is re-embedded, 75 % of the gain" in second
    assert "by +2.0 points" in second
    assert "no better than keeping" in words(0.3, 0.5, 0.3, {})[1]
    for new in (0.3, 0.2, float("nan")):
        (only,) = words(0.3, new, 0.25, {"random": 0.3})
        assert "no better than the old one" in only


def test_a_compatible_model_searches_the_old_gallery_as_it_is(sets, tmp_path):
    """With no transformation and a gallery of the old fingerprint, retrieval is cross retrieval."""
    old, new = (EmbeddingSet.read(sets / name) for name in ("old", "new"))
    rng = np.random.default_rng(1)
    compatible = np.array(old.vectors) + 0.3 * rng.standard_normal(old.vectors.shape)
    EmbeddingSet.of(
        compatible.astype(np.float32), labels=new.labels, meta={"fingerprint": "b"}
    ).write(tmp_path / "bct")
    config = config_of(sets, "", metric="cosine")
    config.new = str(tmp_path / "bct")
    config.transformed = f"BCT=identity,same={sets / 'old'}"
    report = evaluate(config, tmp_path / "report")
    right = retrieval_metrics(compatible, old.vectors, new.labels, metric="cosine")
    assert report.rows["BCT new/old"] == pytest.approx(right, abs=1e-6)
    assert report.rows["same new/old"] == report.rows["BCT new/old"]
    assert "BCT: the new model searches the unchanged old gallery." in report.notes
    assert list(report.curves["BCT"]) == ["random", "distance"]
    config.new = str(sets / "new")
    with pytest.raises(UserError, match="BCT has dimension 5, but the new model has 8"):
        evaluate(config, tmp_path / "other")


def test_maps_stand_for_transformations(sets, tmp_path):
    """A fitted map's directory and a Python function are accepted, as in other commands."""
    mapping = fit(sets / "old", sets / "new", method="ridge", out=tmp_path / "map")
    (tmp_path / "widen.py").write_text(
        "import numpy as np\n\n\ndef pad(x):\n    return np.pad(x, ((0, 0), (0, 3)))\n"
    )
    config = config_of(sets, "")
    config.transformed = f"ridge={tmp_path / 'map'},padded=widen:pad"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        report = evaluate(config, tmp_path / "report")
    old, new = (EmbeddingSet.read(sets / name) for name in ("old", "new"))
    for name, vectors in (
        ("ridge", mapping.transform(old.vectors)[0]),
        ("padded", np.pad(old.vectors, ((0, 0), (0, 3)))),
    ):
        right = retrieval_metrics(new.vectors, vectors, new.labels)
        assert report.rows[f"{name} new/old"] == pytest.approx(right)
    assert "uncertainty" in report.curves["ridge"] and "uncertainty" not in report.curves["padded"]
    config.old = corrupted(sets, tmp_path / "other", "old", meta={"fingerprint": "x"})
    with pytest.raises(UserError, match="ridge=.* was trained with another old model .o. than"):
        evaluate(config, tmp_path / "refused")


def test_separate_queries(sets, tmp_path):
    config = config_of(sets, query_old=str(sets / "query_old"), query_new=str(sets / "query_new"))
    report = evaluate(config, tmp_path / "report")
    found = {p.name: EmbeddingSet.read(p) for p in sets.iterdir()}
    right = retrieval_metrics(
        found["query_new"].vectors, found["moved"].vectors,
        found["query_new"].labels, found["moved"].labels,
    )  # fmt: skip
    assert report.rows["FastFill new/old"] == pytest.approx(right)
    curve = report.curves["FastFill"]["uncertainty"]
    assert curve.values["map"][0] == pytest.approx(right["map"])
    assert curve.values["map"][-1] == pytest.approx(report.rows["new/new"]["map"])


def test_map_at_r_by_faiss(sets, tmp_path):
    """If R is the whole gallery, mAP@R equals mAP."""
    report = evaluate(config_of(sets, map_at=N), tmp_path / "report")
    exact = evaluate(config_of(sets), tmp_path / "exact")
    for row in exact.rows:
        assert report.rows[row] == pytest.approx(exact.rows[row], abs=1e-6)
    assert report.title("map") == f"mAP@{N}"


def test_groups(sets, tmp_path):
    groups = np.arange(N) // 45
    np.save(tmp_path / "groups.npy", groups)
    report = evaluate(config_of(sets, groups=str(tmp_path / "groups.npy")), tmp_path / "report")
    halves = report.per_group["new/new"]
    assert list(halves) == [0, 1]
    both = np.mean([values["cmc@1"] for values in halves.values()])
    assert both == pytest.approx(report.rows["new/new"]["cmc@1"])


def corrupted(sets, folder, name, **changes):
    found = EmbeddingSet.read(sets / name)
    arrays = {"vectors": np.array(found.vectors), "labels": found.labels, "meta": found.meta}
    EmbeddingSet.of(**{**arrays, **changes}).write(folder)
    return str(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"metric": "l3"}, "unknown config.metric 'l3'"),
        ({"orders": "random,uncertanty"}, "'uncertanty'; did you mean 'uncertainty'"),
        ({"transformed": "moved"}, "write NAME=WHERE"),
        ({"transformed": "FCT=/no/where"}, "does not exist"),
        ({"transformed": "a=identity,a=identity"}, "config.transformed names 'a' twice"),
        ({"old": "/no/where"}, "does not exist"),
        ({"new": ""}, r"config\.new is empty"),
        ({"groups": "/no/where.npy"}, "is not a file"),
        ({"ks": (0,)}, "0"),
    ],
)
def test_mistakes_are_named(sets, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        evaluate(tiny_runs.changed(config_of(sets), changes), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_sets_that_do_not_fit_are_refused(sets, tmp_path):
    vectors = np.array(EmbeddingSet.read(sets / "new").vectors)
    nan = vectors.copy()
    nan[3, 3] = np.nan
    broken = {
        "another": ({"meta": {"fingerprint": "x"}}, "comes from model x, but the new model is n"),
        "short": ({"vectors": vectors[:-1], "labels": np.arange(N - 1)}, f"{N - 1}"),
        "wide": (
            {"vectors": np.ones((N, 9), np.float32)},
            "has dimension 9, but the new model has 8",
        ),
        "nan": ({"vectors": nan}, "the vector of id 3 is not finite"),
    }
    for name, (changes, message) in broken.items():
        folder = corrupted(sets, tmp_path / name, "new", **changes)
        config = config_of(sets, "")
        config.transformed = f"FCT={folder}"
        with pytest.raises(UserError, match=message):
            evaluate(config, tmp_path / "report")


def test_nothing_is_overwritten(sets, tmp_path):
    (tmp_path / "report").mkdir()
    with pytest.raises(UserError, match="exists already"):
        evaluate(config_of(sets), tmp_path / "report")


@pytest.mark.slow
def test_a_transformation_of_another_model_is_named(sets, tmp_path):
    """The message names the transformation, which does not fit the old model."""
    run = tmp_path / "fct"
    train(tiny_runs.transformation(sets / "old", sets / "new", epochs=2, batch_size=30), run)
    for name, expected in (
        ("old", "another old model .o. than config.old"),
        ("new", "another new"),
    ):
        config = config_of(sets, "")
        config[name] = corrupted(sets, tmp_path / f"other {name}", name, meta={"fingerprint": "x"})
        config.transformed = f"FCT={run}"
        with pytest.raises(UserError, match=f"config.transformed: FCT=.* {expected}"):
            evaluate(config, tmp_path / "report")
    config = config_of(sets, "")
    config.transformed = f"FCT={run}"
    assert "FCT new/old" in evaluate(config, tmp_path / "report").rows
