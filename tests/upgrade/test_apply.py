"""Applying an upgrade: killed and resumed, rolled back, watched, and refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny_galleries as tiny
from patience import LONG
from tiny_galleries import as_set, contents, upgraded, write_probe

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.maps.loading import load_map as open_map
from fct_jax.upgrade.migration.journal import Journal, Progress
from fct_jax.upgrade.migration.upgrade import Upgrade

REPOSITORY = Path(__file__).parents[2]
HELPERS = REPOSITORY / "tests" / "helpers"
COUNT = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return paths of a gallery in each form and of all new vectors, and the arrays."""
    return tiny.made_galleries(tmp_path_factory.mktemp("galleries"), COUNT)


@pytest.mark.parametrize("form", tiny.FORMS)
def test_translated_then_new_in_plan_order(made, tmp_path, form):
    paths, _, ids, old, new = made
    before = contents(paths[form].parent if form == "faiss" else paths[form])
    Upgrade(tmp_path).plan(tiny.plain_map(), paths[form], budget_items=100, batch_size=16)
    gallery = upgraded(made, form, tmp_path, max_batches=2)
    assert gallery.form == form and gallery.meta["state"] == "migrating"
    # The stand-in map is least certain about the largest first values.
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
    # Another run changes nothing.
    after = contents(tmp_path / "gallery")
    upgraded(made, form, tmp_path)
    assert contents(tmp_path / "gallery") == after
    assert not (tmp_path / "pending.npy").exists()


@pytest.mark.slow
@pytest.mark.multiprocess
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
        timeout=LONG,
    )
    assert ran.returncode == 0, ran.stderr
    for seed, killed in zip(seeds, ran.stdout.split(), strict=True):
        assert int(killed) > 3, ran.stderr
        assert contents(tmp_path / seed / "gallery") == plain
        done = Progress(Journal(tmp_path / seed / "journal.jsonl").records)
        assert done.items == done.reembedded == COUNT
        # Items that had failed came in their own batches.
        assert len(done.stops) >= -(-COUNT // 23) + 2


@pytest.mark.slow
@pytest.mark.multiprocess
def test_killed_from_outside(tmp_path):
    """A process with a real map is interrupted and killed at random until nothing is left to do."""
    ids, old, new = tiny.vectors(1500)
    tiny.write_gallery("set", tmp_path / "old", ids, old)
    EmbeddingSet.of(new, ids, meta={"fingerprint": "new-model"}).write(tmp_path / "new")
    tiny.plain_map().save(tmp_path / "map")
    # However late the signal comes, it finds work to be done: the source stops until "go" is there.
    (tmp_path / "slow.py").write_text(
        "import time\nfrom pathlib import Path\n"
        "from fct_jax.storage.embedding_set import EmbeddingSet\n"
        "found = EmbeddingSet.read('new')\nrow = {i: r for r, i in enumerate(found.ids)}\n"
        "journal, go = Path('killed/journal.jsonl'), Path('go')\n"
        "def late():\n"
        '    return journal.exists() and journal.read_text().count(\'"kind": "batch"\') > 65\n'
        "def vectors(ids):\n    time.sleep(0.01)\n"
        "    while late() and not go.exists():\n        time.sleep(0.01)\n"
        "    return found.vectors[[row[i] for i in ids]]\n"
    )
    command = [
        sys.executable,
        "-c",
        "import sys; from fct_jax.upgrade import Upgrade; Upgrade(sys.argv[1]).apply("
        "'map', 'old', reembed=sys.argv[2], batch_size=16, batch_items=20)",
    ]

    said = tmp_path / "said.txt"  # a file, since nobody would read a pipe while the command runs

    def start(workdir, source):
        with said.open("w") as file:
            return subprocess.Popen(
                [*command, workdir, source],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.DEVNULL,
                stderr=file,
            )

    whole = tmp_path / "whole"
    Upgrade(whole).plan(tmp_path / "map", tmp_path / "old", order="random", batch_size=16)
    Upgrade(whole).apply(
        tmp_path / "map", tmp_path / "old", reembed=tmp_path / "new", batch_size=16, batch_items=20
    )
    chance = random.Random(0)
    for target, stop in ((0.2, signal.SIGINT), (0.5, signal.SIGINT), (0.7, signal.SIGKILL)):
        process = start("killed", "slow:vectors")
        journal = tmp_path / "killed" / "journal.jsonl"
        deadline = time.monotonic() + LONG
        while process.poll() is None and time.monotonic() < deadline:
            done = journal.read_bytes().count(b'"kind": "batch"') if journal.is_file() else 0
            if done > 75 * target:
                time.sleep(chance.random() * 0.1)
                break
            time.sleep(0.01)
        process.send_signal(stop)
        process.wait(timeout=LONG)
    killed = Progress(Journal(journal).records)
    assert 0 < killed.items < 1500
    (tmp_path / "go").touch()
    assert start("killed", "slow:vectors").wait(timeout=LONG) == 0, said.read_text()
    assert contents(tmp_path / "killed" / "gallery") == contents(whole / "gallery")


@pytest.mark.parametrize("form", tiny.FORMS)
def test_rollback_returns_to_any_batch(made, tmp_path, form):
    paths = made[0]
    at = {}
    for batch in range(4):
        # Each batch is a run of its own, so that Parquet files are written for each.
        if batch == 0:
            Upgrade(tmp_path).apply(tiny.plain_map(), paths[form], batch_size=16, unchecked=True)
        else:
            upgraded(made, form, tmp_path, max_batches=1)
        at[batch] = contents(tmp_path / "gallery")
    for batch in (3, 2, 1, 0):
        assert Upgrade(tmp_path).rollback(batch, map=tiny.plain_map()) == 23 * batch
        assert contents(tmp_path / "gallery") == at[batch]
    with pytest.raises(
        UserError, match=r"the batch to roll back to must be between 0 and 0, not 1"
    ):
        Upgrade(tmp_path).rollback(1, map=tiny.plain_map())
    upgraded(made, form, tmp_path, max_batches=3)
    assert contents(tmp_path / "gallery") == at[3]


def test_nothing_to_roll_back(made, tmp_path):
    path = made[0]["set"]
    with pytest.raises(UserError, match="not translated yet"):
        Upgrade(tmp_path).rollback(0, map=tiny.plain_map())
    Upgrade(tmp_path).apply(tiny.plain_map(), path, unchecked=True)
    with pytest.raises(UserError, match="no item is re-embedded"):
        Upgrade(tmp_path).rollback(0, map=tiny.plain_map())


def test_status(made, tmp_path):
    paths, _, ids, _, new = made
    with pytest.raises(UserError, match="no upgrade in"):
        Upgrade(tmp_path / "none").status()
    work = tmp_path / "work"
    write_probe(tmp_path / "probe", ids, new)
    Upgrade(work).plan(tiny.plain_map(), paths["set"], probe=tmp_path / "probe", budget_items=200)
    found = Upgrade(work).status()
    assert (found.state, found.planned, found.reembedded) == ("not begun", 200, 0)

    upgraded(made, "set", work, max_batches=4)
    found = Upgrade(work).status()
    assert json.loads(json.dumps(found.to_json()))["workdir"] == str(work)
    assert (found.state, found.count, found.translated) == ("migrating", COUNT, COUNT)
    assert (found.reembedded, found.batches, found.planned) == (92, 4, 200)
    assert found.share == 92 / COUNT and found.measure == "agreement@10"
    # The forecast is interpolated between steps of 5 %, the measurement is exact.
    assert abs(found.measured - found.forecast) < 0.02 < found.measured
    assert found.rate > 0 and found.seconds_left == 108 / found.rate
    said = str(found)
    assert "re-embedded 92 of 200 planned items in 4 batches (30.7% of the gallery)" in said
    assert f"agreement@10 (translated): measured {found.measured:.4f}, forecast" in said

    upgraded(made, "set", work)
    found = Upgrade(work).status(probe=tmp_path / "probe")
    assert (found.state, found.seconds_left) == ("finished", 0)
    Upgrade(work).rollback(0, map=tiny.plain_map())
    assert Upgrade(work).status().state == "translated"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dual", "fused"])
def test_status_measures_the_way_of_serving(made, tmp_path, way):
    paths, _, ids, old, new = made
    write_probe(tmp_path / "probe", ids, new)
    noise = 0.05 * np.random.default_rng(4).standard_normal((80, tiny.OLD_DIM))
    EmbeddingSet.of((old[:80] + noise).astype(np.float32)).write(tmp_path / "probe" / "query_old")
    Upgrade(tmp_path).plan(tiny.plain_map(), paths["set"], probe=tmp_path / "probe", serve=way)
    for batches in (4, 0):
        upgraded(made, "set", tmp_path, max_batches=batches or None)
        found = Upgrade(tmp_path).status(probe=tmp_path / "probe")
        assert (found.way, found.measure) == (way, "agreement@10")
        # The forecast is interpolated between steps of 5 %, the measurement is exact.
        assert abs(found.measured - found.forecast) < (0.02 if batches else 1e-9)


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
    gallery = Upgrade(tmp_path / "work").apply(map, path, reembed=str(where))
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
    # The ids have another text width and another order.
    others = np.append(names[::-1], "one that is in no gallery")
    where = as_set(tmp_path / "new", np.append(new[::-1], new[:1], axis=0), others)
    made = Upgrade(tmp_path / "work").apply(
        tiny.plain_map(), path, reembed=str(where), batch_items=30
    )
    assert made.dtype == np.float16 and made.versions.all()
    np.testing.assert_array_equal(made.ids, names)
    np.testing.assert_array_equal(made.read(0, 100), new.astype(np.float16))


def test_settings_are_remembered(made, tmp_path):
    """The first call names map, gallery and settings; a contradiction is refused, naming both."""
    paths, where, *_ = made
    upgrade = Upgrade(tmp_path)
    with pytest.raises(UserError, match="knows no map yet; give map"):
        upgrade.apply(reembed=where)
    with pytest.raises(UserError, match="knows no gallery yet; give gallery"):
        upgrade.plan(tiny.plain_map())
    assert not list(tmp_path.iterdir())
    write_probe(tmp_path / "probe", made[2], made[4])
    upgrade.plan(
        tiny.plain_map(), paths["set"], probe=tmp_path / "probe", batch_size=16, budget_items=40
    )
    told = json.loads((tmp_path / "upgrade.json").read_text())
    assert (told["gallery"], told["probe"]) == (str(paths["set"]), str(tmp_path / "probe"))
    assert (told["batch_size"], told["map_fingerprint"]) == (16, tiny.plain_map().fingerprint)
    assert open_map(told["map"]).fingerprint == tiny.plain_map().fingerprint
    upgrade.apply(reembed=where, max_batches=1)  # the same object still has its map
    for given, message in (
        ({"gallery": paths["parquet"]}, f"gallery: {paths['set']} there, {paths['parquet']} now"),
        ({"batch_size": 32}, "batch_size: 16 there, 32 now"),
        ({"on_bad": "raise"}, "on_bad: quarantine there, raise now"),
        ({"map": tiny.plain_map(unit_output=True)}, "map_fingerprint: .* there, .* now"),
    ):
        with pytest.raises(UserError, match=rf"an upgrade with other settings \({message}\)"):
            Upgrade(tmp_path).apply(reembed=where, **given)
    gallery = upgrade.apply(reembed=where)
    assert gallery.versions.sum() == 40
    assert Upgrade(tmp_path).status().measured is not None
    assert Upgrade(tmp_path).rollback(0, map=tiny.plain_map()) == 0
    (tmp_path / "upgrade.json").write_text("{")
    with pytest.raises(UserError, match=r"upgrade.json cannot be read"):
        Upgrade(tmp_path).status()


def test_paths_with_a_tilde(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(made[0]["set"].parent))
    monkeypatch.chdir(tmp_path)
    made_here = Upgrade("~/up").apply(
        tiny.plain_map(), "~/set", reembed="~/new", batch_size=16, batch_items=200
    )
    assert made_here.path == made[0]["set"].parent / "up" / "gallery"
    assert made_here.versions.all() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", tiny.FORMS)
def test_a_compatible_model_needs_no_map(tmp_path, form):
    """With "identity", the same commands keep old vectors until their items are re-embedded."""
    ids, old, _ = tiny.vectors(COUNT)
    rng = np.random.default_rng(1)
    new = (old + 0.3 * rng.standard_normal(old.shape)).astype(np.float32)
    path = tiny.write_gallery(form, tmp_path / form, ids, old)
    where = as_set(tmp_path / "new", new, ids, fingerprint="compatible")
    write_probe(tmp_path / "probe", ids, new)
    upgrade = Upgrade(tmp_path / "up")
    plan = upgrade.plan("identity", path, probe=tmp_path / "probe", budget_items=60)
    assert plan.description["order"] == "random"
    made = upgrade.apply(reembed=where, batch_items=20, max_batches=2)
    expected = old.copy()
    expected[plan.rows[:40]] = new[plan.rows[:40]]
    np.testing.assert_array_equal(made.read(0, COUNT), expected)
    assert Upgrade(tmp_path / "up").apply(reembed=where).meta["fingerprint"] == "compatible"
    status = Upgrade(tmp_path / "up").status()
    assert (status.state, status.reembedded) == ("finished", 60)
    assert abs(status.measured - status.forecast) < 0.02
    assert Upgrade(tmp_path / "up").rollback(0) == 0
    np.testing.assert_array_equal(open_gallery(made.path).read(0, COUNT), old)
