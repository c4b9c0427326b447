"""Applying an upgrade: killed and gone on with, rolled back, watched, and refused."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import tiny_galleries as tiny

from fct_jax import config as configs
from fct_jax.embeddings import EmbeddingSet
from fct_jax.errors import UserError
from fct_jax.upgrade.apply import apply, rollback, status
from fct_jax.upgrade.galleries import open_gallery
from fct_jax.upgrade.journal import Journal, Progress
from fct_jax.upgrade.migration import locked
from fct_jax.upgrade.plan import plan

HERE = Path(__file__).parent
COUNT = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Paths of a gallery in each form, of all new vectors, and the arrays."""
    folder = tmp_path_factory.mktemp("apply")
    ids, old, new = tiny.vectors(COUNT)
    paths = {form: tiny.write_gallery(form, folder / form, ids, old) for form in tiny.FORMS}
    EmbeddingSet.of(new, ids, meta={"fingerprint": "new-model"}).write(folder / "new")
    return paths, folder / "new", ids, old, new


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def upgraded(made, form, workdir, **settings):
    settings = {"reembed": str(made[1]), "batch_size": 16, "batch_items": 23, **settings}
    return apply(tiny.plain_map(), made[0][form], workdir, **settings)


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
    environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    seeds = "1" if form == "parquet" else "12"
    arguments = [made[0][form], made[1], tmp_path, *seeds]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", HERE / "kill_apply.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
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
    plain = tiny.plain_map()
    real = type(plain).__mro__[1](
        {k: v for k, v in plain.description.items() if k not in ("fingerprint", "format_version")},
        plain.weights,
        known=plain.known,
    )
    real.save(tmp_path / "map")
    (tmp_path / "slow.py").write_text(
        "import time\nfrom fct_jax.embeddings import EmbeddingSet\n"
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

    def start(workdir, source):
        return subprocess.Popen(
            [*command, f"--workdir={workdir}", f"--config.apply.reembed={source}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(HERE.parent)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def run(*arguments):
        process = start(*arguments)
        assert process.wait() == 0, process.stderr.read().decode()
        process.stderr.close()

    whole = tmp_path / "whole"
    plan(tmp_path / "map", tmp_path / "old", whole, order="random", batch_size=16)
    apply(real, tmp_path / "old", whole, reembed=tmp_path / "new", batch_size=16, batch_items=20)
    chance = random.Random(0)
    for target in (0.2, 0.7):
        process = start("killed", "slow:vectors")
        journal = tmp_path / "killed" / "journal.jsonl"
        while process.poll() is None:
            done = journal.read_bytes().count(b'"kind": "batch"') if journal.is_file() else 0
            if done > 75 * target:
                time.sleep(chance.random() * 0.1)
                break
            time.sleep(0.01)
        process.kill()
        process.wait()
        process.stderr.close()
    killed = Progress(Journal(journal).records)
    assert 0 < killed.items < 1500
    run("killed", "slow:vectors")
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


def write_probe(folder, ids, new, count=80, relevant=False):
    rng = np.random.default_rng(3)
    queries = new[:count] + 0.05 * rng.standard_normal((count, tiny.NEW_DIM)).astype(np.float32)
    EmbeddingSet.of(new, ids, meta={"fingerprint": "new-model"}).write(folder / "new")
    EmbeddingSet.of(queries, meta={"fingerprint": "new-model"}).write(folder / "query")
    if relevant:
        np.save(folder / "relevant.npy", ids[:count])


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
    assert f"agreement@10: measured {found['measured']:.4f}, forecast" in said

    upgraded(made, "set", work)
    found = status(work, probe=tmp_path / "probe")
    assert (found["state"], found["seconds_left"]) == ("finished", 0)
    rollback(tiny.plain_map(), paths["set"], work, 0, batch_size=16)
    assert status(work)["state"] == "translated"


def test_unfinished_galleries_are_not_mistaken(made, tmp_path):
    upgraded(made, "set", tmp_path, max_batches=1)
    with pytest.raises(UserError, match="unfinished gallery .migrating: 23 of 300 planned"):
        EmbeddingSet.read(tmp_path / "gallery")
    assert len(EmbeddingSet.read(tmp_path / "gallery", unfinished=True)) == COUNT
    meta = json.loads((tmp_path / "gallery" / "meta.json").read_text())
    for state in ("translating", "something new"):
        (tmp_path / "gallery" / "meta.json").write_text(json.dumps({**meta, "state": state}))
        with pytest.raises(UserError, match=f"unfinished gallery .{state}"):
            EmbeddingSet.read(tmp_path / "gallery", unfinished=True)
    upgraded(made, "set", tmp_path)
    assert len(EmbeddingSet.read(tmp_path / "gallery")) == COUNT


# Guards. Each is provoked, and nothing may be written.


def refused(tmp_path, gallery, message, map=None, **settings):
    work = tmp_path / "refused"
    with pytest.raises(UserError, match=message) as caught:
        apply(map or tiny.plain_map(), gallery, work, **settings)
    assert "\n" not in str(caught.value)
    assert {p.name for p in work.glob("*")} <= {"lock"}


def as_set(folder, vectors, ids, **meta):
    return EmbeddingSet.of(vectors, ids, meta=meta).write(folder)


@pytest.mark.parametrize("form", tiny.FORMS)
def test_unusable_vectors(tmp_path, form):
    ids, old, new = tiny.vectors(100)
    old = old.copy()
    old[5:17, 2] = np.nan
    old[40, 1] = np.inf
    old[70] = 0
    path = tiny.write_gallery(form, tmp_path / form, ids, old)
    named = ", ".join(map(str, ids[5:15]))
    message = rf"NaN or infinity: 13 ids \({named}, …\); zero vectors: 1 id \({ids[70]}\)"
    refused(tmp_path, path, message, reembed=lambda wanted: new)


def test_wrong_space(made, tmp_path):
    ids, old, new = tiny.vectors(100)
    path = as_set(tmp_path / "other", old, ids, fingerprint="a third model")
    refused(tmp_path, path, "has fingerprint 'a third model', but the old space of the map has")
    path = as_set(tmp_path / "new", new, ids, fingerprint="new-model")
    refused(tmp_path, path, "wrong direction: .* is in the new model's space already")
    path = as_set(tmp_path / "new2", new, ids)
    refused(tmp_path, path, r"has dimension 5, but the map takes 6 .*wrong direction\?")

    path = as_set(tmp_path / "prefixed", old, ids, prefix="query: ")
    map = tiny.plain_map(old_meta={"prefix": "passage: "}, new_meta={"model": "e5"})
    refused(tmp_path, path, "prefix 'query: ', but the old space of the map has 'passage: '", map)
    unit = old / np.linalg.norm(old, axis=1, keepdims=True)
    path = as_set(tmp_path / "unit", unit, ids)
    refused(tmp_path, path, "has normalized True, but the old space of the map has False", map)
    path = as_set(tmp_path / "said", old, ids, normalized=True)
    refused(tmp_path, path, "normalized")

    good = as_set(tmp_path / "good", old, ids)
    for name, message, vectors, meta in (
        ("f", "has fingerprint 'x', but the new space", new, {"fingerprint": "x"}),
        ("m", "has model 'bge', but the new space", new, {"model": "bge"}),
        ("c", "has metric 'cosine', but the new space", new, {"metric": "cosine"}),
        ("d", r"gave float32 \(100, 6\) for 100 ids; floats \(100, 5\)", old, {}),
    ):
        where = as_set(tmp_path / name, vectors, ids, **meta)
        refused(tmp_path, good, message, map, reembed=str(where))


def test_known_answers(tmp_path):
    ids, old, new = tiny.vectors(100)
    good = as_set(tmp_path / "good", old, ids)
    row = {i: r for r, i in enumerate(ids)}
    shuffled = np.random.default_rng(0).permutation(new)
    message = "known-answer queries fail on .*score -?0.[0-2].*shuffled"
    refused(tmp_path, good, message, reembed=str(as_set(tmp_path / "s", shuffled, ids)))
    refused(tmp_path, good, message, reembed=lambda wanted: shuffled[[row[i] for i in wanted]])
    half = new.copy()
    half[::2] = half[::2][::-1]
    refused(tmp_path, good, "known-answer", reembed=str(as_set(tmp_path / "h", half, ids)))
    # A model of the same size, and the map of another pair of models.
    other = np.random.default_rng(1).standard_normal(new.shape).astype(np.float32)
    refused(tmp_path, good, "known-answer", reembed=str(as_set(tmp_path / "o", other, ids)))
    turned = tiny.plain_map(known=False)
    turned.weights["weight"] = np.roll(turned.weights["weight"], 1, axis=1)
    refused(tmp_path, good, "known-answer", turned, reembed=str(as_set(tmp_path / "n", new, ids)))
    # By a probe, where nothing is re-embedded.
    write_probe(tmp_path / "probe", ids, shuffled)
    refused(tmp_path, good, "known-answer queries fail on .*probe/new", probe=tmp_path / "probe")


def test_items_that_are_all_alike_are_no_answers(tmp_path):
    ids, old, new = tiny.vectors(300)
    old[:100], new[:100] = old[0] * [5, 1, 1, 1, 1, 1], new[0]
    row = {i: r for r, i in enumerate(ids)}
    good = as_set(tmp_path / "good", old, ids)
    made = apply(
        tiny.plain_map(),
        good,
        tmp_path / "work",
        reembed=lambda wanted: new[[row[i] for i in wanted]],
        batch_items=20,
    )
    np.testing.assert_array_equal(made.read(0, 300), new)


def test_no_room(made, tmp_path, monkeypatch):
    usage = SimpleNamespace(free=10**3)
    monkeypatch.setattr("fct_jax.upgrade.stores.shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"has 0.0 GB free, but the new gallery takes"):
        upgraded(made, "set", tmp_path)


def test_wrong_direction_of_equal_sizes(tmp_path):
    ids, old, _ = tiny.vectors(100)
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal((6, 6)))[0].astype(np.float32)
    map = tiny.plain_map(dim_out=6, known=False)
    map.dim_out, map.weights = 6, {**map.weights, "weight": turn, "bias": np.zeros(6, np.float32)}
    new = as_set(tmp_path / "new", old @ turn, ids)
    refused(tmp_path, new, "wrong direction: the gallery holds the vectors", map, reembed=str(new))
    backwards = as_set(tmp_path / "old", old, ids)
    refused(tmp_path, new, "known-answer queries fail", map, reembed=str(backwards))


def test_pairs_that_the_map_was_tested_on(tmp_path):
    known = tiny.plain_map().known
    good = as_set(tmp_path / "good", known.old, known.ids)
    apply(tiny.plain_map(), good, tmp_path / "work")  # known answers enough
    shuffled = as_set(tmp_path / "shuffled", known.old[::-1].copy(), known.ids)
    refused(tmp_path, shuffled, "does not pair ids and vectors as the sample did")
    # The same ids for other items: row numbers, say.
    _, old, _ = tiny.vectors(100)
    refused(tmp_path, as_set(tmp_path / "other", old, known.ids), "nothing shows that")


def test_nothing_to_check_against(made, tmp_path):
    message = "nothing shows that .* fits the map: give config.apply.reembed or config.probe"
    refused(tmp_path, made[0]["set"], message)
    work = tmp_path / "work"
    gallery = apply(tiny.plain_map(), made[0]["set"], work, unchecked=True, batch_size=16)
    assert gallery.meta["state"] == "translated" and not gallery.versions.any()
    # New vectors that come later are checked then, before one of them is written.
    ids, new = made[2], made[4]
    shuffled = as_set(tmp_path / "shuffled", new[::-1].copy(), ids)
    with pytest.raises(UserError, match="known-answer queries fail"):
        upgraded(made, "set", work, reembed=str(shuffled))
    assert not open_gallery(work / "gallery").versions.any()


def test_reembed_that_does_not_cover_the_plan(made, tmp_path):
    ids, new = made[2], made[4]
    where = as_set(tmp_path / "some", new[:250], ids[:250])
    with pytest.raises(UserError, match=r"has no vectors for 50 ids \(.*, …\) of the plan"):
        upgraded(made, "set", tmp_path / "work", reembed=str(where))
    where = as_set(tmp_path / "none", new, ids + 10**7)
    refused(tmp_path, made[0]["set"], "has no vector for any id", reembed=str(where))


@pytest.mark.parametrize("wrong", ["nowhere", "nowhere:function", "json:missing", "json:__doc__"])
def test_reembed_that_is_nothing(made, tmp_path, wrong):
    refused(tmp_path, made[0]["set"], f"config.reembed={wrong} (is|cannot)", reembed=wrong)


def test_bad_batches_change_nothing(made, tmp_path):
    """Each batch is checked; after a good answer the same command goes on."""
    ids, new = made[2], made[4]
    row = {i: r for r, i in enumerate(ids)}
    answers = []

    def reembed(wanted):
        rows = [row[i] for i in wanted]
        return answers.pop(0)(new[rows]) if answers else new[rows]

    def run():
        return upgraded(made, "set", tmp_path, reembed=reembed)

    def fails(vectors):
        raise ConnectionError("no route\nto host")

    def nan(vectors):
        return np.where(np.arange(len(vectors))[:, None] == 3, np.nan, vectors)

    good = upgraded(made, "set", tmp_path, reembed=reembed, max_batches=1)
    before = contents(tmp_path / "gallery")
    for wrong, message in (
        (fails, r"reembed failed on 23 ids .*ConnectionError: no route to host"),
        (nan, r"gave NaN or infinity for 1 id"),
        (lambda v: v * 0, r"gave zero vectors for 23 ids"),
        (lambda v: v[:-1], r"gave float32 \(22, 5\) for 23 ids"),
        (lambda v: v.astype(int), r"gave int64"),
        (lambda v: np.roll(v, 5, axis=0), r"known-answer queries fail on batch 2 of reembed"),
    ):
        answers[:] = [wrong]
        with pytest.raises(UserError, match=message) as caught:
            run()
        assert "\n" not in str(caught.value)
        assert contents(tmp_path / "gallery") == before
    assert good.versions.sum() == 23 and run().meta["state"] == "finished"


def test_another_upgrade_in_the_same_place(made, tmp_path):
    paths, where, ids, old, _ = made
    upgraded(made, "set", tmp_path, max_batches=1)
    other = as_set(tmp_path / "other", old[::-1].copy(), ids, fingerprint="old-model")
    with pytest.raises(
        UserError, match="upgrade of another gallery, map or batch size .gallery_sample"
    ):
        apply(tiny.plain_map(), other, tmp_path, reembed=str(where), batch_size=16)
    with pytest.raises(UserError, match="batch_size: 16 there, 32 now"):
        upgraded(made, "set", tmp_path, batch_size=32)
    with pytest.raises(UserError, match="23 items re-embedded; say where new vectors come from"):
        apply(tiny.plain_map(), paths["set"], tmp_path, batch_size=16)
    with locked(tmp_path), pytest.raises(UserError, match="another process is at work in"):
        upgraded(made, "set", tmp_path)
    (tmp_path / "plan").rename(tmp_path / "old plan")
    plan(tiny.plain_map(), paths["set"], tmp_path, order="random")
    with pytest.raises(UserError, match="follows another plan, of which 23 items are done"):
        upgraded(made, "set", tmp_path)
    assert rollback(tiny.plain_map(), paths["set"], tmp_path, 0, batch_size=16) == 0
    assert not open_gallery(tmp_path / "gallery").versions.any()
    assert upgraded(made, "set", tmp_path).versions.all()


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
    from fct_jax.upgrade.apply import apply_command

    config = configs.upgrade()
    with pytest.raises(UserError, match="config.gallery is empty"):
        apply_command(config, tmp_path)
    config.gallery = str(made[0]["set"])
    with pytest.raises(UserError, match="config.map is empty"):
        apply_command(config, tmp_path)
    with pytest.raises(UserError, match="unknown setting of upgrade.apply 'batch_itens'"):
        upgraded(made, "set", tmp_path, batch_itens=3)
