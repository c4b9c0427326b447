"""Classification, landmarks, persons and faces of the same models in one report."""

import json

import numpy as np
import pytest
import tiny_compatible
import tiny_gldv2
from tiny_identities import write_ijbc, write_market1501

from fct_jax import data, load_model
from fct_jax.compare.models import judge
from fct_jax.compare.report import ALONE, report_of, write_reports
from fct_jax.compare.test_sets import open_test
from fct_jax.data.ijb import protocol_beside, read_media, rows_of
from fct_jax.data.market1501 import parse_names
from fct_jax.errors import UserError
from fct_jax.evaluate.metrics import read_groups
from fct_jax.evaluate.protocols.verification import identification, pool_templates
from fct_jax.train.loop import train

pytestmark = pytest.mark.usefixtures("flat_model")

QUERIES = {"digits": 797, "ROxford": 12, "GLDv2": 12, "Market-1501": 6, "IJB-C": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write the four kinds of test sets, each in its released format."""
    root = tmp_path_factory.mktemp("tasks")
    tiny_gldv2.write_gldv2(root / "gldv2", tiny_gldv2.Landmarks(0))
    tiny_gldv2.write_revisited(root / "roxford5k", "roxford5k", tiny_gldv2.Landmarks(1), 0)
    write_market1501(root / "market1501")
    write_ijbc(root / "ijbc")
    for name, count in QUERIES.items():
        np.save(root / f"{name}.npy", np.arange(count) % 2)
    return root


def kinds(root) -> dict[str, dict]:
    """Return {test set: changes to the config}, as a benchmark's config has them."""
    return {
        "digits": {},
        "ROxford": {"data__name": "roxford5k", "data__dir": str(root / "roxford5k")},
        "GLDv2": {"data__name": "gldv2", "data__dir": str(root / "gldv2")},
        "Market-1501": {"data__name": "market1501", "data__dir": str(root / "market1501")},
        "IJB-C": {
            "data__name": "ijb",
            "data__dir": str(root / "ijbc" / "images"),
            "data__list": str(root / "ijbc" / "ijbc_face_tid_mid.txt"),
        },
    }


@pytest.fixture(scope="module")
def found(root, flat_model):
    """Return {test set: {row: metrics}} of an old model, a new one trained alone, and BCT."""
    subset = {"data__subset": "new images 0.3"}
    old = root / "runs" / "old"
    train(tiny_compatible.config(data__subset="old images 0.3", seed=5), old)
    runs = {ALONE: root / "runs" / "alone", "bct": root / "runs" / "bct"}
    train(tiny_compatible.config(**subset), runs[ALONE])
    train(tiny_compatible.config(method="bct", old=str(old), **subset), runs["bct"])
    return {
        name: judge(
            open_test(
                tiny_compatible.config(**subset, **changes, groups=str(root / f"{name}.npy"))
            ),
            old,
            runs[ALONE],
            {"bct": runs["bct"]},
            root / "galleries",
        )
        for name, changes in kinds(root).items()
    }


@pytest.mark.slow
def test_one_table_for_all_tasks(found, tmp_path):
    report = report_of("all tasks", found)
    text = report.markdown()
    (main,) = [line for line in text.splitlines() if line.startswith("| model | digits self |")]
    for name in found:
        assert f"| {name} self | {name} cross |" in main
    cells = len(main.split("|"))
    rows = [line for line in text.splitlines() if line.startswith(("| old |", "| new alone |"))]
    assert {len(line.split("|")) for line in rows[:2]} == {cells}
    # The details have gain, negative flips and the gap between groups for every task.
    details = report.tables()[1]
    head = details.columns
    assert head == ["model", "test set", "gain", "NFR", "relative NFR", "gap", "refresh"]
    lines = {(line[0], line[1]): dict(zip(head, line, strict=True)) for line in details.rows}
    assert set(lines) == {(row, name) for row in (ALONE, "bct") for name in found}
    for line in lines.values():
        assert line["NFR"] and line["gap"] and line["refresh"]
    # The usual metrics of each task have their own table.
    assert "| cmc@1 | cmc@5 | cmc@10 |" in text
    assert "| top@1 | top@5 | top@10 | tpir@fpir=0.01 | tpir@fpir=0.1 | tar@far=1e-06 |" in text
    for row, scores in report.scores().items():  # by the definition, over the five test sets
        gains = [
            (rows[row]["cross"] - rows["old"]["self"]) / (rows[ALONE]["self"] - rows["old"]["self"])
            for rows in found.values()
        ]
        assert scores["update_gain"] == pytest.approx(np.mean(gains))
        assert scores["p_comp"] == pytest.approx(np.mean([1 / (1 + np.exp(-g)) for g in gains]))
    write_reports([report], tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())["comparisons"]["all tasks"]
    assert set(written["tests"]) == set(found)


@pytest.mark.slow
def test_groups_of_every_task(root, found, tmp_path):
    """Each kind of test set accepts a file of groups, whose gap is shown."""
    run = root / "runs" / "bct"
    old = root / "runs" / "old"
    for name, count in QUERIES.items():
        np.save(tmp_path / "groups.npy", np.arange(count) % 3)
        changes = kinds(root)[name] | {"groups": str(tmp_path / "groups.npy")}
        test = open_test(tiny_compatible.config(**changes))
        query, gallery = test.vectors(run, test.query), test.vectors(old, test.gallery)
        scored = test.score(np.asarray(query.vectors), np.asarray(gallery.vectors))
        assert list(scored.groups) == [0, 1, 2]
        values = np.array(list(scored.groups.values()))
        assert min(values) <= scored.map <= max(values)
        assert scored.map == pytest.approx(found[name]["bct"]["cross"])
        if count % 3 == 0:  # groups of one size
            assert values.mean() == pytest.approx(scored.map)
        np.save(tmp_path / "groups.npy", np.arange(count - 1))
        with pytest.raises(UserError, match=f"but there are {count} queries"):
            open_test(tiny_compatible.config(**changes))


@pytest.mark.slow
def test_default_groups(root, found):
    """The default groups are cameras for persons, and landmarks by the names of queries."""
    config = tiny_compatible.config(**kinds(root)["Market-1501"])
    test = open_test(config)
    run = root / "runs" / "bct"
    query, gallery = (test.vectors(run, split) for split in ("query", "gallery"))
    scored = test.score(np.asarray(query.vectors), np.asarray(gallery.vectors))
    assert set(scored.groups) == set(parse_names(query.ids)[1].tolist())
    test = open_test(tiny_compatible.config(**kinds(root)["ROxford"]))
    query, gallery = (test.vectors(run, split) for split in ("query", "gallery"))
    scored = test.score(np.asarray(query.vectors), np.asarray(gallery.vectors))
    assert scored.groups == {"query": pytest.approx(scored.map)}  # all are called query_N


@pytest.mark.slow
def test_faces_are_pooled_as_asked(root, found, tmp_path):
    """Mirror images, unit lengths and detector scores agree with pooling by hand."""
    run = root / "runs" / "bct"
    media_file = root / "ijbc" / "ijbc_face_tid_mid.txt"
    media = read_media(media_file)
    scores = np.linspace(0.2, 1, len(media.images))
    lines = [
        f"{name} 1 2 3 4 5 6 7 8 9 10 {s}\n" for name, s in zip(media.images, scores, strict=True)
    ]
    (tmp_path / "scores.txt").write_text("".join(lines))
    changes = {"flip": True, "normalize": True, "scores": str(tmp_path / "scores.txt")}
    changes = {f"faces__{key}": value for key, value in changes.items()} | kinds(root)["IJB-C"]
    test = open_test(tiny_compatible.config(**changes))
    vectors = test.vectors(run, "gallery")

    source = data.open_source(test.config.data, "gallery")
    images = np.stack(
        [load_model(run).preprocessing.on_host(source[i]["image"]) for i in range(len(source))]
    )
    both = [load_model(run).embed(images[:, :, ::step]) for step in (1, -1)]
    np.testing.assert_allclose(vectors.vectors, sum(both) / 2, rtol=1e-4, atol=1e-5)
    rows = rows_of(media, vectors.ids)
    ids, pooled = pool_templates(
        np.asarray(vectors.vectors)[rows],
        media.templates,
        media.media,
        weights=scores,
        normalize=True,
    )
    _, gallery, probe = protocol_beside(media_file)
    row = {template: i for i, template in enumerate(ids.tolist())}
    sides = [pooled[[row[t] for t in part.templates]] for part in (probe, gallery)]
    expected = identification(sides[0], probe.subjects, sides[1], gallery.subjects)
    scored = test.score(np.asarray(vectors.vectors), np.asarray(vectors.vectors))
    assert scored.map == pytest.approx(expected["map"])
    assert scored.more["top@1"] == expected["top@1"]
    assert scored.more["tpir@fpir=0.1"] == expected["tpir@fpir=0.1"]


def test_groups_that_cannot_be_read(tmp_path):
    assert read_groups("", 3) is None
    (tmp_path / "text.npy").write_text("0 1 2")
    for path, message in (("text.npy", "is not a .npy of integers"), ("none.npy", "is not a file")):
        with pytest.raises(UserError, match=message) as caught:
            read_groups(str(tmp_path / path), 3)
        assert "\n" not in str(caught.value)
