"""Parts of a translation: the bytes of one process, killed, started twice, watched, refused."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest
import tiny_galleries as tiny
from gallery_files import written
from kill_parts import translate
from patience import LONG

from fct_jax import cli
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.maps.functions import Linear
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.migration.settings import Settings
from fct_jax.upgrade.migration.sides import Opened
from fct_jax.upgrade.migration.status import Status
from fct_jax.upgrade.migration.steps import lock_of
from fct_jax.upgrade.migration.upgrade import Upgrade
from fct_jax.upgrade.parts.finishing import Finishing
from fct_jax.upgrade.parts.places import Folder, name_of
from fct_jax.upgrade.parts.publishing import Publishing
from fct_jax.upgrade.parts.running import Running

REPOSITORY = Path(__file__).parents[3]
HELPERS = REPOSITORY / "tests" / "helpers"
COUNT = 2000


def results(workdir) -> dict[str, bytes]:
    """Return what an upgrade has made: the gallery, log-variances, unusable rows."""
    found = {f"gallery/{name}": data for name, data in tiny.tree(workdir / "gallery").items()}
    for name in ("uncertainty.npy", "quarantine.jsonl"):
        found[name] = (workdir / name).read_bytes()
    return found


@pytest.fixture(scope="module")
def galleries(tmp_path_factory):
    """Return paths of a gallery with two unusable rows in each form, and of all new vectors."""
    folder = tmp_path_factory.mktemp("galleries")
    ids, old, new = tiny.vectors(COUNT)
    old[5], old[1111] = np.nan, 0
    paths = {}
    for form in ("set", "faiss"):
        paths[form] = tiny.write_gallery(form, folder / form, ids, old)
    paths["parquet"] = folder / "parquet"
    paths["parquet"].mkdir()
    sizes = (70, 0, 130, 1, 333, 64, 64, 500)
    tiny.write_parquet(paths["parquet"], ids, old, sizes=sizes, kind=pa.list_(pa.float16()))
    (paths["parquet"] / "_meta.json").write_text('{"fingerprint": "old-model"}')
    (paths["parquet"] / "later").mkdir()
    (paths["parquet"] / "part-3.parquet").rename(paths["parquet"] / "later" / "part-3.parquet")
    return paths, tiny.as_set(folder / "new", new, ids, fingerprint="new-model")


@pytest.fixture(scope="module")
def whole(galleries, tmp_path_factory):
    """Return {form: directory of an upgrade by one process}."""
    folder = tmp_path_factory.mktemp("whole")
    for form, path in galleries[0].items():
        translate(path, folder / form)
    return {form: folder / form for form in galleries[0]}


@pytest.mark.parametrize("form", tiny.FORMS)
def test_sixteen_parts_are_one_process(galleries, whole, tmp_path, form):
    """Also afterwards: with new vectors, and rolled back."""
    paths, new = galleries
    for number in np.random.default_rng(1).permutation(16):
        found = translate(paths[form], tmp_path / "up", f"{number + 1}/16")
        if isinstance(found, Status):
            assert found.state == "translating" and found.pieces.done < found.pieces.count
    assert found.form == form and len(found) == COUNT
    assert results(tmp_path / "up") == results(whole[form])
    assert not (tmp_path / "up" / "parts").exists()
    status = Upgrade(tmp_path / "up").status()
    assert (status.state, status.translated, status.quarantined) == ("translated", COUNT, 2)
    # A part that is started again finds nothing to do.
    translate(paths[form], tmp_path / "up", "3/16")
    by_one = tmp_path / "one"
    translate(paths[form], by_one)
    for workdir in (tmp_path / "up", by_one):
        upgrade = Upgrade(workdir)
        upgrade.apply(tiny.plain_map(), reembed=str(new), batch_items=300, max_batches=3)
        upgrade.rollback(2, map=tiny.plain_map())
    assert results(tmp_path / "up") == results(by_one)
    assert open_gallery(by_one / "gallery", unfinished=True).versions.sum() == 600


def test_shards_are_assembled(tmp_path):
    """Numbered .npy files become an EmbeddingSet."""
    path = written("shards", tmp_path / "shards", tiny.vectors(600)[1])
    translate(path, tmp_path / "one")
    for number in (2, 3, 1):
        translate(path, tmp_path / "up", f"{number}/3")
    assert tiny.tree(tmp_path / "up" / "gallery") == tiny.tree(tmp_path / "one" / "gallery")


@pytest.mark.parametrize("count", [999, 1024 + 16 + 3])
def test_borders_inside_blocks(tmp_path, count):
    """Files end anywhere, but the blocks that are computed are those of one process.

    The products of larger matrices differ in their last bits if blocks are cut elsewhere.
    """
    rng = np.random.default_rng(0)
    old = rng.standard_normal((count, 96)).astype(np.float32)
    matrix = rng.standard_normal((96, 80)).astype(np.float32)
    described = {"method": "ridge", "dim_in": 96, "dim_out": 80, "unit_output": True}
    mapping = Map(described, Linear(matrix, np.float32(1), np.zeros(80, np.float32)))
    folder = tmp_path / "old"
    folder.mkdir()
    tiny.write_parquet(folder, np.arange(count), old, sizes=(41, 111, 7, 300, 90))

    def apply(workdir, part=None):
        given = {"batch_size": 32, "unchecked": True, "part": part}
        return Upgrade(workdir).apply(mapping, folder, **given)

    apply(tmp_path / "one")
    for number in (1, 2, 3):
        apply(tmp_path / "up", f"{number}/3")
    assert tiny.tree(tmp_path / "up" / "gallery") == tiny.tree(tmp_path / "one" / "gallery")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("form", tiny.FORMS)
def test_killed_and_started_twice(galleries, whole, tmp_path, form):
    environment = {**os.environ, "PYTHONPATH": f"{HELPERS}{os.pathsep}{REPOSITORY}"}
    arguments = [galleries[0][form], tmp_path, "1"]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", HELPERS / "kill_parts.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert ran.returncode == 0, ran.stderr
    for seed, killed in zip("1", ran.stdout.split(), strict=True):
        assert int(killed) >= 1, ran.stderr  # how many depends on which process is first
        assert results(tmp_path / seed) == results(whole[form])


@pytest.fixture
def words(galleries, tmp_path):
    """Return a function that gives the words of ``fct-jax apply`` in tmp_path/up."""
    tiny.plain_map().save(tmp_path / "map")
    given = ["--map", tmp_path / "map", "--gallery", galleries[0]["parquet"], "--unchecked"]

    def made(*more):
        return [str(w) for w in ("apply", tmp_path / "up", *given, "--batch-size", 16, *more)]

    return made


def said(capsys) -> str:
    """Return the single line of an error."""
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert len(lines) == 1, lines
    return lines[0]


def test_the_console(words, whole, tmp_path, capsys):
    assert cli.main(words("--part", "2/3")) == 0
    assert "being written" in capsys.readouterr().out
    assert cli.main(["status", str(tmp_path / "up"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["state"] == "translating" and 0 < shown["translated"] < COUNT
    pieces = shown["pieces"]
    assert 0 < pieces["done"] < pieces["count"] and pieces["rows"] == COUNT
    # Without --part the command makes what is missing.
    assert cli.main(["apply", str(tmp_path / "up"), "--unchecked"]) == 0
    assert results(tmp_path / "up") == results(whole["parquet"])


def test_mistakes(words, galleries, tmp_path, capsys):
    for part, expected in (
        ("17/16", "--part 17/16: parts count from 1 to 16"),
        ("0/16", "--part 0/16: parts count from 1 to 16"),
        ("3", "--part 3: give NUMBER/COUNT, such as 3/16"),
        ("auto", "neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX is set"),
    ):
        assert cli.main(words("--part", part)) == 1
        assert expected in said(capsys)
    assert not (tmp_path / "up").exists()
    assert cli.main(words("--part", "1/2", "--reembed", str(galleries[1]))) == 1
    assert "a part only translates" in said(capsys)

    assert cli.main(words("--part", "1/3")) == 0
    capsys.readouterr()
    tiny.plain_map(matrix=-tiny.weight()).save(tmp_path / "other")
    other = [str(tmp_path / "other") if w == str(tmp_path / "map") else w for w in words()]
    assert cli.main([*other, "--part", "2/3"]) == 1
    assert "map_fingerprint" in said(capsys)
    (tmp_path / "up" / "upgrade.json").unlink()  # as on a host with a directory of its own
    for more, differs in ((other, "map:"), (words("--dtype", "float32"), "dtype: 'float16' there")):
        assert cli.main([*more, "--part", "2/3"]) == 1
        line = said(capsys)
        assert f"holds parts of another gallery, map, batch size or type ({differs}" in line


def test_a_directory_keeps_its_name_on_another_host(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "pod-3")
    assert name_of(tmp_path) == f"pod-3:{tmp_path}"
    monkeypatch.setattr(socket, "gethostname", lambda: "pod-3-again")
    assert name_of(tmp_path) == f"pod-3:{tmp_path}"


@pytest.mark.parametrize("links", [True, False])
def test_a_name_goes_to_one_writer(tmp_path, monkeypatch, links):
    """The second layout does not replace the first, which other parts may have read already."""
    place = Folder(tmp_path / "parts")
    place.make()
    if links:  # the name is taken by another process after this one has looked for it
        monkeypatch.setattr(Path, "exists", lambda path: False)
    else:
        monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError))
    assert place.publish_bytes("layout.json", b"first")
    assert not place.publish_bytes("layout.json", b"second")
    assert place.read("layout.json") == b"first"
    assert place.publish_bytes("layout.json", b"third", again=True)
    assert place.read("layout.json") == b"third"
    assert [path.name for path in place.path.iterdir()] == ["layout.json"]


@pytest.fixture
def few(tmp_path):
    """Return the path of a gallery of a few pieces."""
    ids, old, _ = tiny.vectors(60)
    return tiny.write_gallery("set", tmp_path / "few", ids, old)


def test_unfinished_files_of_killed_parts_are_removed(tmp_path, few):
    translate(few, tmp_path / "up", "1/3")
    place = Folder(tmp_path / "up" / "parts")
    old, young = place.partial("piece-00007"), place.partial("piece-00008")
    for path in (old, young):
        path.write_bytes(b"half of it")
    os.utime(old, times=(0, time.time() - 7200))
    assert place.writing() == ["piece-00008"]
    translate(few, tmp_path / "up", "2/3")
    assert young.exists() and not old.exists()


def test_another_part_has_just_finished(tmp_path, few, monkeypatch):
    """Its journal was read before the end, and the pieces were looked for after it."""
    up, begin = tmp_path / "up", Running.begin
    translate(few, up, "1/2")

    def late(running, *arguments):
        monkeypatch.setattr(Running, "begin", begin)
        translate(few, up, "2/2")
        running._work.progress.add({"kind": "layout", "stamps": {}})  # as the journal was then
        return begin(running, *arguments)

    monkeypatch.setattr(Running, "begin", late)
    assert len(translate(few, up, "2/2")) == 60


def test_one_part_checks_the_gallery(tmp_path, few):
    """Others that start meanwhile wait for it, and if it fails, the next one checks."""
    checked, failing = [], threading.Event()

    def check(plan):
        checked.append(time.monotonic())
        time.sleep(0.2)
        if len(checked) == 1:
            failing.set()
            raise UserError("the first one fails")

    def begin():
        with contextlib.suppress(UserError):
            settings = Settings(map="map", gallery=str(few))
            opened = Opened(settings, open_gallery(few), tiny.plain_map(), None, False)
            Running(tmp_path / "up", opened).begin(None, check)

    threads = [threading.Thread(target=begin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert failing.is_set() and len(checked) == 2


@pytest.mark.parametrize("form", ["set", "faiss"])
def test_what_is_joined_is_removed(galleries, whole, tmp_path, form, monkeypatch):
    """The pieces need no disk twice, and a part that starts again makes none of them again."""
    keep, kept = Finishing._keep, []

    def killed(self, piece, *arguments):
        if len(kept) == 9:
            raise KeyboardInterrupt
        kept.append(piece)
        keep(self, piece, *arguments)

    path = galleries[0][form]
    translate(path, tmp_path, "1/2")
    monkeypatch.setattr(Finishing, "_keep", killed)
    with pytest.raises(KeyboardInterrupt):
        translate(path, tmp_path, "2/2")
    monkeypatch.setattr(Finishing, "_keep", keep)
    monkeypatch.setattr(Publishing, "make", Mock(side_effect=AssertionError("made again")))
    left = {f"piece-{number:05d}.npy" for number in range(9, 63)}
    assert {p.name for p in (tmp_path / "parts").glob("piece-*[0-9].npy")} == left
    for part in ("1/2", "2/2"):
        translate(path, tmp_path, part)
    assert results(tmp_path) == results(whole[form])


def test_a_finished_part_needs_no_lock(tmp_path, few):
    """Of two parts that end at the same moment, neither fails because the other has the lock."""
    for number in (1, 2):
        translate(few, tmp_path / "up", f"{number}/2")
    with lock_of(tmp_path / "up"):
        assert len(translate(few, tmp_path / "up", "2/2")) == 60


def test_a_gallery_that_changes_between_parts(tmp_path):
    ids, old, _ = tiny.vectors(300)
    path = tiny.write_gallery("parquet", tmp_path / "old", ids, old)
    translate(path, tmp_path / "up", "1/3")
    tiny.write_parquet(path, ids, old + 1)
    with pytest.raises(UserError, match=r"part-0.parquet of .* has changed since the first part"):
        translate(path, tmp_path / "up", "2/3")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1] + b"x", lambda data: data[:-1]], ids=("changed", "short")
)
@pytest.mark.parametrize(
    ("form", "files"), [("parquet", "gallery/*.parquet"), ("set", "piece-*[0-9].npy")]
)
def test_a_damaged_piece_is_made_again(galleries, whole, tmp_path, form, files, damage):
    """Its checksum is compared by the part that made it, and by the process that finishes."""
    path = galleries[0][form]
    for number in (1, 2):
        translate(path, tmp_path, f"{number}/3")
    piece, other = sorted((tmp_path / "parts").glob(files))[:2]
    piece.write_bytes(damage(piece.read_bytes()))
    other.unlink()
    next((tmp_path / "parts").glob("piece-*.json")).write_text("{")
    translate(path, tmp_path, "3/3")
    assert results(tmp_path) == results(whole[form])


def test_begun_by_one_process(tmp_path, galleries):
    path = galleries[0]["set"]
    translate(path, tmp_path)
    records = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(records[:3]))
    with pytest.raises(UserError, match="is being translated by one process"):
        translate(path, tmp_path, "1/2")


def test_damaged_shards_of_the_source(tmp_path):
    """The checksums that the source itself has are compared, each by one piece."""
    ids, old, _ = tiny.vectors(600)
    path = EmbeddingSet.of(old, ids, meta={"fingerprint": "old-model"}).write(tmp_path / "old")
    data = bytearray((path / "vectors.npy").read_bytes())
    data[-1] ^= 1
    (path / "vectors.npy").write_bytes(data)
    with pytest.raises(UserError, match="vectors.npy is damaged in shard 0"):
        for number in (1, 2):
            translate(path, tmp_path / "up", f"{number}/2")
