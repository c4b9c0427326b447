"""Applying an upgrade: killed and gone on with, rolled back, watched, and refused."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny_galleries as tiny
from tiny_galleries import as_set, contents, upgraded, write_probe

from fct_jax import config as configs
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.migration.applying import apply, rollback, status
from fct_jax.upgrade.migration.journal import Journal, Progress
from fct_jax.upgrade.migration.planning import plan

REPOSITORY = Path(__file__).parents[2]
HELPERS = REPOSITORY / "tests" / "helpers"
COUNT = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Paths of a gallery in each form, of all new vectors, and the arrays."""
    return tiny.made_galleries(tmp_path_factory.mktemp("galleries"), COUNT)


@pytest.mark.parametrize("form", tiny.FORMS)
def test_translated_then_new_in_plan_order(made, tmp_path, form):
    paths, _, ids, old, new = made
    before = contents(paths[form].parent if form == "faiss" else paths[form])
    plan(tiny.plain_map(), paths[form], tmp_path, budget_items=100, batch_size=16)
    gallery = upgraded(made, form, tmp_path, max_batches=2)
    assert gallery.form == form and gallery.meta["state"] == "migrating"
    # The stand-in map is least sure of the largest first values.
    order = np.argsort(-old[:, 0] * 2, kind="stable")
    expected = old @ tiny.weight()
    expected[order[:46]] = new[order[:46]]
    np.testing.assert_allclose(gallery.read(0, COUNT), expected, atol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(gallery.versions), np.sort(order[:46]))
    np.testing.assert_array_equal(gallery.ids, ids)

    gallery = upgraded(made, form, tmp_path)
    expected[order[:100]] = new[order[:100]]
    np.testing.assert_allclose(gallery.read(0, COUNT), expected, atol=1e-6)
    assert gallery.versions.sum() == 100
    described = {k: gallery.meta[k] for k in ("state", "reembedded", "planned", "fingerprint")}
    assert described == {
        "state": "finished",
        "reembedded": 100,
        "planned": 100,
        "fingerprint": "new-model",
    }
    assert contents(paths[form].parent if form == "faiss" else paths[form]) == before
    # Once more changes nothing.
    after = contents(tmp_path / "gallery")
    upgraded(made, form, tmp_path)
    assert contents(tmp_path / "gallery") == after
    assert not (tmp_path / "pending.npy").exists()


@pytest.mark.parametrize("form", tiny.FORMS)
def test_killed_at_any_moment(made, tmp_path, form):
    upgraded(made, form, tmp_path / "whole")
    plain = contents(tmp_path / "whole" / "gallery")
    environment = {**os.environ, "PYTHONPATH": f"{HELPERS}{os.pathsep}{REPOSITORY}"}
    seeds = "1" if form == "parquet" else "12"
    arguments = [made[0][form], made[1], tmp_path, *seeds]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", HELPERS / "kill_apply.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    for seed, killed in zip(seeds, ran.stdout.split(), strict=True):
        assert int(killed) > 3, ran.stderr
        assert contents(tmp_path / seed / "gallery") == plain
        done = Progress(Journal(tmp_path / seed / "journal.jsonl").records)
        assert done.items == COUNT and len(done.stops) == -(-COUNT // 23)


def test_killed_from_outside(tmp_path):
    """The command with a real map, killed at random times until it has nothing left to do."""
    ids, old, new = tiny.vectors(1500)
    tiny.write_gallery("set", tmp_path / "old", ids, old)
    EmbeddingSet.of(new, ids, meta={"fingerprint": "new-model"}).write(tmp_path / "new")
    tiny.plain_map().save(tmp_path / "map")
    (tmp_path / "slow.py").write_text(
        "import time\nfrom fct_jax.storage.embedding_set import EmbeddingSet\n"
        "found = EmbeddingSet.read('new')\nrow = {i: r for r, i in enumerate(found.ids)}\n"
        "def vectors(ids):\n    time.sleep(0.01)\n"
        "    return found.vectors[[row[i] for i in ids]]\n"
    )
    (tmp_path / "config.py").write_text(
        "from fct_jax import config\ndef get_config():\n    return config.upgrade()\n"
    )
    command = [sys.executable, "-m", "fct_jax.upgrade", "apply", "--config=config.py"]
    command += ["--config.gallery=old", "--config.map=map", "--config.batch_size=16"]
    command += ["--config.plan.order=random", "--config.apply.batch_items=20"]

    said = tmp_path / "said.txt"  # not a pipe: nobody reads it while the command runs

    def start(workdir, source):
        with said.open("w") as file:
            return subprocess.Popen(
                [*command, f"--workdir={workdir}", f"--config.apply.reembed={source}"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )

    whole = tmp_path / "whole"
    plan(tmp_path / "map", tmp_path / "old", whole, order="random", batch_size=16)
    sizes = {"batch_size": 16, "batch_items": 20}
    apply(tmp_path / "map", tmp_path / "old", whole, reembed=tmp_path / "new", **sizes)
    chance = random.Random(0)
    for target in (0.2, 0.7):
        process = start("killed", "slow:vectors")
        journal = tmp_path / "killed" / "journal.jsonl"
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            done = journal.read_bytes().count(b'"kind": "batch"') if journal.is_file() else 0
            if done > 75 * target:
                time.sleep(chance.random() * 0.1)
                break
            time.sleep(0.01)
        process.kill()
        process.wait(timeout=60)
    killed = Progress(Journal(journal).records)
    assert 0 < killed.items < 1500
    assert start("killed", "slow:vectors").wait(timeout=250) == 0, said.read_text()
    assert contents(tmp_path / "killed" / "gallery") == contents(whole / "gallery")


@pytest.mark.parametrize("form", tiny.FORMS)
def test_rollback_returns_to_any_batch(made, tmp_path, form):
    paths = made[0]
    at = {}
    for batch in range(4):
        # An own run for each batch, so that Parquet files are written for each.
        if batch == 0:
            apply(tiny.plain_map(), paths[form], tmp_path, batch_size=16, unchecked=True)
        else:
            upgraded(made, form, tmp_path, max_batches=1)
        at[batch] = contents(tmp_path / "gallery")
    for batch in (3, 2, 1, 0):
        assert rollback(tiny.plain_map(), paths[form], tmp_path, batch, batch_size=16) == 23 * batch
        assert contents(tmp_path / "gallery") == at[batch]
    with pytest.raises(UserError, match=r"rollback_to must be the number of a batch, 0 … 0, not 1"):
        rollback(tiny.plain_map(), paths[form], tmp_path, 1, batch_size=16)
    upgraded(made, form, tmp_path, max_batches=3)
    assert contents(tmp_path / "gallery") == at[3]


def test_nothing_to_roll_back(made, tmp_path):
    path = made[0]["set"]
    with pytest.raises(UserError, match="not translated yet"):
        rollback(tiny.plain_map(), path, tmp_path, 0)
    apply(tiny.plain_map(), path, tmp_path, unchecked=True)
    with pytest.raises(UserError, match="no item is re-embedded"):
        rollback(tiny.plain_map(), path, tmp_path, 0)


def test_status(made, tmp_path, capsys):
    paths, _, ids, _, new = made
    with pytest.raises(UserError, match="no upgrade in"):
        status(tmp_path / "none")
    work = tmp_path / "work"
    write_probe(tmp_path / "probe", ids, new)
    plan(tiny.plain_map(), paths["set"], work, probe=tmp_path / "probe", budget_items=200)
    found = status(work)
    assert (found["state"], found["planned"], found["reembedded"]) == ("not begun", 200, 0)

    upgraded(made, "set", work, max_batches=4)
    found = status(work, probe=tmp_path / "probe")
    assert (found["state"], found["count"], found["translated"]) == ("migrating", COUNT, COUNT)
    assert (found["reembedded"], found["batches"], found["planned"]) == (92, 4, 200)
    assert found["share"] == 92 / COUNT and found["measure"] == "agreement@10"
    # The forecast is interpolated between steps of 5 %, the measurement is exact.
    assert abs(found["measured"] - found["forecast"]) < 0.02 < found["measured"]
    assert found["rate"] > 0 and found["seconds_left"] == 108 / found["rate"]
    said = capsys.readouterr().out
    assert "re-embedded 92 of 200 planned items in 4 batches (30.7% of the gallery)" in said
    assert f"agreement@10 (translated): measured {found['measured']:.4f}, forecast" in said

    upgraded(made, "set", work)
    found = status(work, probe=tmp_path / "probe")
    assert (found["state"], found["seconds_left"]) == ("finished", 0)
    rollback(tiny.plain_map(), paths["set"], work, 0, batch_size=16)
    assert status(work)["state"] == "translated"


@pytest.mark.parametrize("way", ["dual", "fused"])
def test_status_measures_the_way_of_serving(made, tmp_path, way):
    paths, _, ids, old, new = made
    write_probe(tmp_path / "probe", ids, new)
    noise = 0.05 * np.random.default_rng(4).standard_normal((80, tiny.OLD_DIM))
    EmbeddingSet.of((old[:80] + noise).astype(np.float32)).write(tmp_path / "probe" / "query_old")
    plan(tiny.plain_map(), paths["set"], tmp_path, probe=tmp_path / "probe", serve=way)
    for batches in (4, 0):
        upgraded(made, "set", tmp_path, max_batches=batches)
        found = status(tmp_path, probe=tmp_path / "probe")
        assert (found["way"], found["measure"]) == (way, "agreement@10")
        # The forecast is interpolated between steps of 5 %, the measurement is exact.
        assert abs(found["measured"] - found["forecast"]) < (0.02 if batches else 1e-9)


def test_journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for number in range(3):
        journal.append("step", number=number)
    assert [r["number"] for r in Journal(path).records] == [0, 1, 2]
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[:-20], whole[:-9] + b"deadbeef\n", whole + b'{"kind": "st'):
        path.write_bytes(torn)
        again = Journal(path)
        kept = 3 if torn.startswith(whole) else 2
        assert len(again.records) == kept
        again.append("step", number="last")
        assert [r["number"] for r in Journal(path).records] == [*range(kept), "last"]
    lines = whole.splitlines(keepends=True)
    for damaged in (lines[0] + lines[2], lines[1] + lines[0] + lines[2], b"x" + whole):
        path.write_bytes(damaged + lines[2])
        with pytest.raises(UserError, match="is damaged in line [12]"):
            Journal(path)


def test_faiss_of_cosine_holds_unit_vectors(tmp_path):
    ids, old, new = tiny.vectors(100)
    path = tiny.write_gallery("faiss", tmp_path / "old", ids, old)
    where = as_set(tmp_path / "new", new, ids, metric="cosine")
    map = tiny.plain_map(metric="cosine")
    gallery = apply(map, path, tmp_path / "work", reembed=str(where))
    lengths = np.linalg.norm(gallery.read(0, 100), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)
    assert gallery.meta["normalized"] and gallery.meta["metric"] == "cosine"
    reopened = open_gallery(tmp_path / "work" / "gallery")
    assert reopened.versions.all()


@pytest.mark.parametrize("form", ["set", "parquet"])
def test_text_ids_and_half_precision(tmp_path, form):
    ids, old, new = tiny.vectors(100)
    names = np.array([f"item-{i}" for i in ids])
    if form == "set":
        path = as_set(tmp_path / "old", old.astype(np.float16), names)
    else:
        path = tmp_path / "old"
        path.mkdir()
        tiny.write_parquet(path, names, old, kind=pa.list_(pa.float16()))
    # Another width of text, and another order.
    others = np.append(names[::-1], "one that is in no gallery")
    where = as_set(tmp_path / "new", np.append(new[::-1], new[:1], axis=0), others)
    made = apply(tiny.plain_map(), path, tmp_path / "work", reembed=str(where), batch_items=30)
    assert made.dtype == np.float16 and made.versions.all()
    np.testing.assert_array_equal(made.ids, names)
    np.testing.assert_array_equal(made.read(0, 100), new.astype(np.float16))


def test_command_checks_its_config(made, tmp_path):
    from fct_jax.upgrade.migration.applying import apply_command

    config = configs.upgrade()
    with pytest.raises(UserError, match="config.gallery is empty"):
        apply_command(config, tmp_path)
    config.gallery = str(made[0]["set"])
    with pytest.raises(UserError, match="config.map is empty"):
        apply_command(config, tmp_path)
    with pytest.raises(UserError, match="unknown setting of upgrade.apply 'batch_itens'"):
        upgraded(made, "set", tmp_path, batch_itens=3)
