"""The published benchmark on its own file formats: small landmarks, the real command and config."""

import csv
import json
import pickle
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_gldv2
import tiny_runs
from absl.flags import FLAGS
from patience import LONG
from PIL import Image

from fct_jax import data, models
from fct_jax.cli import main
from fct_jax.errors import UserError
from fct_jax.evaluate.protocols.landmarks import map_at_k, revisited_map
from fct_jax.frozen.model import load_model, write_model
from fct_jax.runtime.config_files import run_config
from fct_jax.runtime.report import FILES
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.loop import train

ROWS = {"new alone": "alone", "bct": "bct", "advbct": "advbct", "FCT": "FCT"}
BILINEAR = Image.Resampling.BILINEAR
KINDS = ("self", "cross")
COMMAND = ("--config", "tiny.py", "--scenarios", "lists", "--methods", "bct,advbct")


def command(*arguments, cwd):
    """Return (exit status, lines of standard error, standard output) of a command."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=tiny_runs.ENVIRONMENT,
        timeout=LONG,
    )
    return done.returncode, done.stderr.splitlines(), done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the folder with the files that the benchmark reads."""
    root = tmp_path_factory.mktemp("gldv2") / "files"
    tiny_gldv2.write_all(root)
    return root


@pytest.fixture(scope="module")
def finished(files):
    """Return the folder in which the benchmark has run."""
    root = files.parent / "finished"
    shutil.copytree(files, root)
    words = ("-m", "fct_jax.compare", *COMMAND, "--workdir", "runs/gldv2")
    status, errors, output = command(*words, cwd=root)
    assert status == 0, errors
    assert "lists: mAP (%)" in output
    return root


@pytest.fixture(scope="module")
def runs(finished):
    return finished / "runs" / "gldv2"


def old_run(runs) -> Path:
    (folder,) = runs.glob("old-*")
    return folder / "seed0"


@pytest.mark.slow(minutes=0.7)
@pytest.mark.multiprocess
def test_one_run_for_each_row(runs):
    folders = [old_run(runs), *(runs / "lists" / "seed0" / name for name in ROWS.values())]
    for folder in folders:
        load_model(folder)
        assert (folder / "metrics.jsonl").is_file() and (folder / "config.json").is_file()
    assert {file.name for file in (runs / "report").iterdir()} == set(FILES)
    lines = (runs / "report" / "report.md").read_text().splitlines()
    heading = next(line for line in lines if line.startswith("| model |"))
    columns = [f"{name} {kind}" for name in ("RParis", "ROxford", "GLDv2") for kind in KINDS]
    assert heading.split(" | ")[1:7] == columns


def read_images(folder, names):
    """Return images (N, 32, 32, 3) uint8, squashed to squares."""
    images = [Image.open(folder / f"{name}.jpg").resize((32, 32), BILINEAR) for name in names]
    return np.stack([np.asarray(image) for image in images])


def revisited_case(folder):
    """Return query images, gallery images, and a function that scores (queries, gallery) ranks."""
    truth = pickle.loads((folder / f"gnd_{folder.name}.pkl").read_bytes())
    images = (read_images(folder / "jpg", truth[part]) for part in ("qimlist", "imlist"))
    return *images, lambda ranked: revisited_map(ranked.T, truth["gnd"])["medium"]["map"]


def gldv2_case(folder):
    """Return the same for GLDv2, read by hand."""

    def nested(names):
        return [f"{'/'.join(name[:3])}/{name}" for name in names]

    index = (folder / "index.csv").read_text().split()[1:]
    with (folder / "retrieval_solution_v2.1.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["Usage"] == "Private"]
    positives = [[index.index(name) for name in row["images"].split()] for row in rows]
    queries = read_images(folder / "test", nested(row["id"] for row in rows))
    gallery = read_images(folder / "index", nested(index))
    return queries, gallery, lambda ranked: map_at_k(ranked[:, :100], positives)


def ranking(query, gallery):
    query, gallery = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in map(np.float64, (query, gallery))
    )
    return np.argsort(-query @ gallery.T, axis=1)


@pytest.fixture(scope="module")
def expected(finished, runs):
    """Return {test set: {row: {"self", "cross"}}} from only the images and the exported models."""
    there = finished / "data"
    cases = {
        "RParis": revisited_case(there / "rparis6k"),
        "ROxford": revisited_case(there / "roxford5k"),
        "GLDv2": gldv2_case(there / "gldv2"),
    }
    models = {row: load_model(runs / "lists" / "seed0" / name) for row, name in ROWS.items()}
    old, transform = load_model(old_run(runs)), models.pop("FCT").transform
    found = {}
    for name, (queries, gallery, score) in cases.items():
        old_gallery = old.embed(gallery)
        found[name] = {"old": {"self": score(ranking(old.embed(queries), old_gallery))}}
        for row, model in models.items():
            query = model.embed(queries)
            searched = {"self": model.embed(gallery), "cross": old_gallery}
            found[name][row] = {k: score(ranking(query, x)) for k, x in searched.items()}
        query, moved = models["new alone"].embed(queries), transform(old_gallery)[0]
        found[name]["FCT"] = {
            "self": found[name]["new alone"]["self"],
            "cross": score(ranking(query, moved)),
        }
    return found


def compared(runs) -> dict:
    return json.loads((runs / "report" / "report.json").read_text())["comparisons"]["lists"]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_mean_average_precisions(runs, expected):
    written = compared(runs)["tests"]
    assert list(written) == list(expected)
    for name, rows in expected.items():
        assert list(written[name]) == ["old", *ROWS]
        for row, values in rows.items():
            for kind, value in values.items():
                assert written[name][row][kind] == pytest.approx(value, abs=1e-6), (name, row)
        values = written[name]["bct"]
        assert (values["curve"][0], values["curve"][-1]) == (values["cross"], values["self"])
    # These are no trivial values: neither everything nor nothing is found.
    flat = [value for rows in expected.values() for row in rows.values() for value in row.values()]
    assert min(flat) > 0.05 and max(flat) < 0.99 and len(set(flat)) > 20


@pytest.mark.slow
@pytest.mark.multiprocess
def test_scores(runs, expected):
    written = compared(runs)["scores"]

    def column(row, kind):
        return np.array([expected[name][row][kind] for name in expected])

    old, star = column("old", "self"), column("new alone", "self")
    for row in ROWS:
        up = 1 / (1 + np.exp(-(column(row, "self") - star) / star))
        comp = 1 / (1 + np.exp(-(column(row, "cross") - old) / (star - old)))
        assert written[row]["p_up"] == pytest.approx(up.mean(), abs=1e-5)
        assert written[row]["p_comp"] == pytest.approx(comp.mean(), abs=1e-5)
        assert written[row]["p_1"] == pytest.approx((2 * up * comp / (up + comp)).mean(), abs=1e-5)
    table = (runs / "report" / "report.md").read_text()
    line = next(line for line in table.splitlines() if line.startswith("| bct | "))
    assert line.split(" | ")[-1] == f"{100 * written['bct']['p_1']:.1f} |"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_subsets_are_the_split_lists(finished, monkeypatch):
    """config.data.subset of the published config draws the subsets of tools/split_dataset.py."""
    monkeypatch.chdir(finished)
    plan = run_config(Path("tiny.py"))
    scenarios = plan["benchmark"]()["scenarios"]
    for listed, drawn in zip(scenarios["lists"], scenarios["extended-class"], strict=True):
        sources = []
        for changes in (listed, drawn):
            config = plan["get_config"]()
            config.update_from_flattened_dict(changes)
            sources.append(data.open_source(config.data, "train"))
        by_list, by_subset = (
            dict(zip(s.ids.tolist(), s.labels.tolist(), strict=True)) for s in sources
        )
        assert by_list == by_subset
    assert len(by_list) == 72 and set(by_list.values()) == set(range(12))


@pytest.fixture
def world(files, tmp_path, monkeypatch):
    """Put the files of a benchmark that has not run into the current directory."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "data"


def stops(capsys, *message, flags=COMMAND):
    """Check that the benchmark ends with status 1 and one line that contains every message."""
    capsys.readouterr()
    assert main(["compare", *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for part in message:
        assert part in line, line
    assert not Path("runs").exists()


def test_missing_images_are_counted_before_training(world, capsys):
    def remove(files):
        for file in files:
            file.unlink()

    gallery = sorted((world / "roxford5k" / "jpg").glob("roxf*.jpg"))
    remove(gallery[:11])
    named = ", ".join(file.name for file in gallery[:10])
    stops(capsys, "11 of 36 images are missing", "roxford5k/jpg", f": {named}, …")
    index = (world / "gldv2" / "index.csv").read_text().split()[1:]
    paths = [f"{'/'.join(name[:3])}/{name}.jpg" for name in index[3:5]]
    tiny_gldv2.write_revisited(world / "roxford5k", "roxford5k", tiny_gldv2.Landmarks(0), 0)
    remove(world / "gldv2" / "index" / path for path in paths)
    stops(capsys, "2 of 30 images are missing", f": {', '.join(paths)}")
    listed = (world / "gldv2" / "splits" / "train_new_100percent_class.txt").read_text()
    train = [line.split()[0] for line in listed.splitlines()][-12:]
    remove(world / "gldv2" / path for path in train)
    stops(capsys, "12 of 72 images are missing", f": {', '.join(train[:10])}, …")


def test_list_line_that_does_not_parse(world, capsys):
    with (world / "gldv2" / "splits" / "train_old_30percent_class.txt").open("a") as file:
        file.write("train/0/1/2/012.jpg\n")
    place = "data/gldv2/splits/train_old_30percent_class.txt, line 19: 'train/0/1/2/012.jpg'"
    stops(capsys, place)
    (world / "gldv2" / "train.txt").write_text("train/a.jpg 0\n\ntrain/b.jpg three\n")
    flags = (*COMMAND[:3], "extended-data")
    stops(capsys, "train.txt, line 3: label 'three'", flags=flags)


def test_empty_ground_truth(world, capsys):
    path = world / "rparis6k" / "gnd_rparis6k.pkl"
    truth = pickle.loads(path.read_bytes())
    for entry in truth["gnd"]:
        entry["easy"] = entry["hard"] = []
    path.write_bytes(pickle.dumps(truth))
    stops(capsys, "gnd_rparis6k.pkl is empty")
    path.write_bytes(pickle.dumps({**truth, "qimlist": [], "gnd": []}))
    stops(capsys, "gnd_rparis6k.pkl is empty")
    tiny_gldv2.write_revisited(path.parent, "rparis6k", tiny_gldv2.Landmarks(0), 0)
    solution = world / "gldv2" / "retrieval_solution_v2.1.csv"
    solution.write_text(solution.read_text().replace("Private", "Public"))
    stops(capsys, "retrieval_solution_v2.1.csv is empty")


def test_unknown_names_and_missing_weights(world, capsys):
    for flags, message in (
        ((*COMMAND[:5], "bct,advbt"), "unknown compatible training method 'advbt'; did you mean"),
        ((*COMMAND[:3], "list"), "unknown scenario 'list'; did you mean 'lists'"),
        (("--config", "tiny.pi"), "no config file tiny.pi"),
    ):
        stops(capsys, message, flags=flags)
    text = Path("tiny.py").read_text().replace('config.pretrained = ""', "")
    Path("tiny.py").write_text(text)
    stops(capsys, "no file weights/resnet18.pth (config.pretrained)")


@pytest.fixture
def refused(finished, monkeypatch):
    """Check that training ends with one line and no run (exit status: see test_commands.py)."""
    monkeypatch.chdir(finished)

    def call(message, **changes):
        changes = {"method": "advbct", "data.list": NEW_LIST, **changes}
        config = runpy.run_path("tiny.py")["get_config"]()
        config.update_from_flattened_dict({key: str(value) for key, value in changes.items()})
        with pytest.raises(UserError) as stopped:
            train(config, "refused")
        assert message in str(stopped.value) and "\n" not in str(stopped.value)
        assert not Path("refused").exists()
        FLAGS.unparse_flags()
        for name in [name for name in FLAGS if name.startswith("config.")]:
            delattr(FLAGS, name)  # each command line defines its own flags

    return call


OLD_LIST, NEW_LIST = (
    f"data/gldv2/splits/train_{part}_class.txt" for part in ("old_30percent", "new_100percent")
)


# ml_collections loads config files in a way that warns.
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_old_runs_that_do_not_fit(refused, finished, runs, tmp_path):
    """Runs are refused for their method, statistics, labels, or a list that was not renumbered."""
    old = str(old_run(runs))
    refused("unknown compatible training method 'advbt'", method="advbt", old=old)

    model = load_model(old)
    kwargs = {"num_classes": 3, "embedding_dim": 8, "width": 4, "has_classifier": False}
    bare = {**model.description, "name": tiny_runs.MODEL, "kwargs": kwargs}  # as SimCLR exports it
    fresh = jax.jit(models.build(tiny_runs.MODEL, **kwargs).init)
    variables = fresh(jax.random.key(0), np.zeros((1, 32, 32, 3)))
    write_model(tmp_path / "bare" / "model", bare, variables)
    message = "config.method=bct needs the old model's classifier"
    refused(message, method="bct", old=tmp_path / "bare")

    status, errors, _ = command(
        *("-m", "fct_jax.embed", "--workdir", tmp_path / "train"),
        *(f"--config.model={old}", "--config.split=train"),
        "--config.class_statistics=True",
        cwd=finished,
    )
    assert status == 0, errors
    own = tmp_path / "train" / "class_statistics_euclidean.npz"
    alone = str(runs / "lists" / "seed0" / "alone")
    message = f"class statistics of fingerprint '{model.fingerprint}'"
    refused(message, old=alone, statistics=own)

    # The same number of classes, but different ones.
    found = EmbeddingSet.read(own.parent)
    meta = {key: found.meta[key] for key in ("fingerprint", "data", "split")}
    others = EmbeddingSet.of(found.vectors, found.ids, (found.labels + 1) % 3, meta=meta)
    statistics = shutil.copy(own, others.write(tmp_path / "others"))
    refused(f"id {found.ids[0]} has label 1 in", old=old, statistics=statistics)
    message = f"in {OLD_LIST} and"
    refused(message, method="bct", old=old, **{"data.list": "data/gldv2/train.txt"})
