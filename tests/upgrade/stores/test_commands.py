"""The commands on stores: plan, apply, status, switch and back, with real engines."""

import itertools
import json

import numpy as np
import pytest
from store_apps import COUNT, NEW, OLD, Writer, assert_agree, ids, new_model, vectors

from fct_jax import cli, load_map
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade import Upgrade, calibrate
from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.stores import NEW as REEMBEDDED
from fct_jax.upgrade.stores import TRANSLATED
from fct_jax.upgrade.stores.id_file import IdFile

STORES = ["postgres", "qdrant", "lance", "milvus"]


def run(*words) -> int:
    """Run a command; return its exit code."""
    return cli.main([str(word) for word in words])


def told(capsys, *words):
    """Run a command with JSON output; return what it printed."""
    capsys.readouterr()
    assert run(*words, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("store", STORES)
def test_the_way_there_and_back(store, make_app, open_store, map_folder, tmp_path, capsys):
    app, upgrade = make_app(store).filled(), tmp_path / "upgrade"
    new = tmp_path / "new"
    have = app.rows()
    keys = np.array(sorted(have))
    EmbeddingSet.of(new_model(np.stack([have[one] for one in keys.tolist()])), keys).write(new)
    made = told(capsys, "plan", upgrade, "--map", map_folder, "--gallery", app.uri,
                "--budget-items", 300)  # fmt: skip
    assert (made["items"], made["count"], made["gallery"]) == (300, COUNT, app.uri)
    assert made["checked"] == {"bad": 0}
    assert run("apply", upgrade) == 0
    assert told(capsys, "status", upgrade)["state"] == "translated"
    assert run("apply", upgrade, "--reembed", new, "--batch-items", 128) == 0
    found = told(capsys, "status", upgrade)
    assert (found["state"], found["translated"], found["reembedded"]) == ("finished", COUNT, 300)
    assert found["readers"].startswith(app.uri) and found["recall"] > 0.9
    assert found["recall_half"] > 0.9
    now = told(capsys, "switch", upgrade)
    assert now["generation"] == 1 and now["previous"]["store"] == app.uri
    target = open_store(now["store"])
    states = target.states(keys)
    assert sum(version == REEMBEDDED for version, _ in states.values()) == 300
    assert told(capsys, "status", upgrade)["readers"].startswith(now["store"])
    assert told(capsys, "rollback", upgrade, "--to", 1)["reembedded"] == 128
    states = target.states(keys)
    assert sum(version == REEMBEDDED for version, _ in states.values()) == 128
    assert told(capsys, "switch", upgrade, "--back")["store"] == app.uri
    assert run("switch", upgrade, "--back") == 1
    assert "readers follow" in capsys.readouterr().err


@pytest.mark.parametrize("store", STORES)
def test_a_sample_is_enough_to_judge_by(store, make_app, open_store, tmp_path, capsys):
    """doctor, fit and assess read some of the rows; the ids of the new vectors select them."""
    app = make_app(store).filled()
    found = told(capsys, "doctor", app.uri, "--sample", 200)
    assert (found["rows"], found["looked_at"], found["dim"]) == (COUNT, 200, OLD)
    have = app.rows()
    keys = np.array(sorted(have))[::2]
    EmbeddingSet.of(new_model(np.stack([have[one] for one in keys.tolist()])), keys).write(
        tmp_path / "new"
    )
    words = (app.uri, tmp_path / "new", "--method", "ridge", "--sample", 400)
    made = told(capsys, "fit", *words, "--out", tmp_path / "map")
    assert made["pairs"] + made["pairs_held_out"] == 400
    if store == "postgres":
        asked = ("--query-old", app.uri, "--query-new", tmp_path / "new")
        words = (*words[:2], *asked, "--resamples", 50, "--sample", 500)
        assert run("assess", *words) in (cli.DONE, cli.LOOK)
        assert capsys.readouterr().err.count("500 of 750 rows are taken") == 2


def test_two_stores_are_paired_by_the_ids_of_one(make_app, open_store, tmp_path, capsys):
    app = make_app("postgres").filled()
    have = app.rows()
    app.db.execute(f"create table newer (key bigint primary key, embedding vector({NEW}))")
    try:
        app.put(list(have), new_model(np.stack(list(have.values()))), "newer")
        newer = app.uri.replace("table=items", "table=newer")
        words = (app.uri, newer, "--method", "ridge", "--sample", 300, "--out", tmp_path / "map")
        made = told(capsys, "fit", *words)
        assert made["pairs"] + made["pairs_held_out"] == 300
        assert max(made["quality"]["ridge"].values()) > 0.5
    finally:
        app.db.execute("drop table newer")


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_the_application_writes_meanwhile(
    store, make_app, open_store, map_folder, tmp_path, monkeypatch
):
    """500 rows are inserted, 100 changed and 100 deleted while apply and switch run."""
    monkeypatch.setattr("fct_jax.upgrade.stores.base.BATCH_ROWS", 128)
    app, upgrade = make_app(store).filled(), tmp_path / "upgrade"
    writer, append = Writer(app), Journal.append

    def writing(journal, kind, **values):
        writer.step()
        return append(journal, kind, **values)

    monkeypatch.setattr(Journal, "append", writing)
    assert run("apply", upgrade, "--map", map_folder, "--gallery", app.uri) == 0
    left = len(writer.steps)
    assert left < 10
    assert run("switch", upgrade) == 0
    while writer.steps:  # also after the switch: the same command carries the rest over
        writer.step()
    assert run("apply", upgrade) == 0
    h = load_map(map_folder)
    now = open_store(app.uri).pointer().current()
    target = open_store(now["store"])
    assert now["generation"] == 1 and len(app.rows()) == COUNT + 400
    assert_agree(app, target, lambda rows: h.transform(rows)[0], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_items_that_change_or_cannot_be_embedded(
    store, make_app, open_store, map_folder, tmp_path, monkeypatch, capsys
):
    """Such items stay translated, are listed and requested again."""
    app, upgrade = make_app(store).filled(), tmp_path / "upgrade"
    keys, changed = np.array(sorted(app.rows())), ids("int", 3, 6)
    refused, seeds = set(ids("int", 10, 15)), itertools.count(77)

    def embed(wanted):
        have = app.rows()
        if refused:
            app.put(changed, vectors(3, next(seeds)))  # this also comes after they were translated
        return [None if i in refused else new_model(have[i][None])[0] for i in wanted.tolist()]

    work = Upgrade(upgrade)
    work.plan(map_folder, app.uri, order="random")
    work.apply(reembed=embed, unchecked=True).close()
    listed = [
        json.loads(line)["id"] for line in (upgrade / "unembedded.jsonl").read_text().splitlines()
    ]
    assert set(listed) == {*refused, *changed}
    found = work.status(recall_queries=0)
    assert (found.unembedded, found.reembedded, found.state) == (8, COUNT - 8, "finished")
    target = open_store(found.target)
    translated = [i for i, (version, _) in target.states(keys).items() if version == TRANSLATED]
    assert set(translated) == {*refused, *changed}
    refused.clear()
    work.apply(reembed=embed, unchecked=True).close()
    assert work.status(recall_queries=0).unembedded == 0
    assert_agree(app, target, new_model, 1e-5)
    # A later change is translated at once, and gets its new vector with the next --reembed.
    app.put(changed, vectors(3, 99))
    work.apply().close()
    assert {target.states(np.array(changed))[one][0] for one in changed} == {TRANSLATED}
    assert work.status(recall_queries=0).unembedded == 3
    work.apply(reembed=embed, unchecked=True).close()
    assert_agree(app, target, new_model, 1e-5)


@pytest.mark.parametrize("serve", ["translated", "dual"])
def test_a_probe_forecasts_and_measures(serve, make_app, open_store, map_folder, tmp_path, capsys):
    app, upgrade, probe = make_app("postgres").filled(), tmp_path / "upgrade", tmp_path / "probe"
    have = app.rows()
    keys = np.array(sorted(have))
    old = np.stack([have[one] for one in keys.tolist()])
    rng = np.random.default_rng(1)
    some = rng.permutation(COUNT)[:300]
    near = old[some[:80]] + 0.1 * rng.normal(size=(80, OLD)).astype(np.float32)
    for part, rows, its in (
        ("new", new_model(old[some]), keys[some]),
        ("query", new_model(near), np.arange(80)),
        ("query_old", near, np.arange(80)),
    ):
        EmbeddingSet.of(rows, its).write(probe / part)
    EmbeddingSet.of(new_model(old), keys).write(tmp_path / "new")
    made = told(capsys, "plan", upgrade, "--map", map_folder, "--gallery", app.uri, "--serve",
                serve, "--probe", probe, "--budget-items", 900)  # fmt: skip
    assert made["forecast"]["way"] == serve
    assert run("apply", upgrade, "--reembed", tmp_path / "new") == 0
    found = told(capsys, "status", upgrade, "--recall-queries", 0)
    # The forecast is made on a sample, the measurement on the items themselves.
    assert found["measured"] == pytest.approx(found["forecast"], abs=0.1)
    assert found["measured"] > 0.5 and found["measure"] == "agreement@10"


@pytest.mark.parametrize(
    ("store", "kind"),
    [("postgres", "uuid"), ("postgres", "text"), ("qdrant", "uuid"), ("lance", "text")],
)
def test_ids_of_other_kinds(store, kind, make_app, open_store, map_folder, tmp_path, capsys):
    app, upgrade = make_app(store, kind).filled(), tmp_path / "upgrade"
    have = app.rows()
    keys = np.array(sorted(have))
    new = EmbeddingSet.of(new_model(np.stack([have[one] for one in keys.tolist()])), keys)
    words = ("--map", map_folder, "--gallery", app.uri)
    made = told(capsys, "plan", upgrade, *words, "--budget-items", 200, "--order", "random")
    assert made["checked"] == {"bad": None}  # this order reads no vector
    assert told(capsys, "status", upgrade)["quarantined"] is None
    assert run("apply", upgrade, "--reembed", new.write(tmp_path / "new")) == 0
    app.put(ids(kind, 0, 3), vectors(3, 4))
    app.delete(ids(kind, 9, 12))
    now = told(capsys, "switch", upgrade)
    assert run("rollback", upgrade, "--to", 0) == 0
    h = load_map(map_folder)
    assert_agree(app, open_store(now["store"]), lambda rows: h.transform(rows)[0], 1e-5)


class TestBadRows:
    """Vectors that are zero, NaN or of another dimension are set aside, listed and repaired."""

    def bad(self, app, store):
        """Spoil two rows in the ways that the store permits; return {id: reason}."""
        (one, other), zero = ids("int", 20, 22), np.zeros(OLD, np.float32)
        app.put([one], zero[None])
        if store == "lance":
            app.delete([other])
            rows = app.table([other], np.full((1, OLD), np.nan, np.float32))
            lance = pytest.importorskip("lance", reason="LanceDB's own client writes no NaN")
            lance.write_dataset(rows, f"{app.place.partition('://')[2]}/items.lance", mode="append")
            return {one: "zero", other: "NaN"}
        if store == "postgres":
            app.db.execute("alter table items alter column embedding type vector")
            app.put([other], np.ones((1, 7), np.float32))
            return {one: "zero", other: "NaN"}  # of another dimension
        app.put([other], zero[None])
        return {one: "zero", other: "zero"}

    @pytest.mark.parametrize("store", [*STORES[:3], pytest.param("milvus", marks=pytest.mark.slow)])
    def test_they_never_cost_the_good_ones(
        self, store, make_app, open_store, map_folder, tmp_path, capsys
    ):
        app, upgrade = make_app(store).filled(), tmp_path / "upgrade"
        more = ids("int", COUNT, COUNT + 1000)  # one bad row in a thousand is allowed
        app.put(more, vectors(1000, 8))
        bad = self.bad(app, store)
        words = ("--map", map_folder, "--gallery", app.uri)
        assert run("plan", tmp_path / "other", *words, "--on-bad", "raise") == 1
        assert run("plan", upgrade, *words, "--budget-items", 50) == 0
        assert run("apply", upgrade) == 0
        lines = (upgrade / "quarantine.jsonl").read_text().splitlines()
        assert {row["id"]: row["reason"] for row in map(json.loads, lines)} == bad
        found = told(capsys, "status", upgrade, "--recall-queries", 0)
        assert (found["quarantined"], found["target"] is None) == (2, False)
        target = open_store(found["target"])
        assert target.count() == COUNT + 998
        assert not target.has(np.array(list(bad))).any()
        # They come first in the plan, as only the new model can give them a vector.
        assert set(IdFile(upgrade / "plan" / "ids", "int")[:2].tolist()) == set(bad)
        app.put([next(iter(bad))], vectors(1, 5))
        assert run("apply", upgrade) == 0
        assert told(capsys, "status", upgrade, "--recall-queries", 0)["quarantined"] == 1
        assert open_store(found["target"]).count() == COUNT + 999

    def test_too_many_are_a_fault(self, make_app, map_folder, tmp_path, capsys):
        app = make_app("lance").filled()
        app.put(ids("int", 30, 33), np.zeros((3, OLD), np.float32))
        words = ("--map", map_folder, "--gallery", app.uri)
        assert run("apply", tmp_path / "upgrade", *words) == 1
        assert "3 of 1,500 rows are unusable" in capsys.readouterr().err


class TestMistakes:
    """Each mistake is reported in one line, before anything is written."""

    def test_an_empty_store(self, make_app, map_folder, tmp_path, capsys):
        app = make_app("postgres")
        app.create()
        words = ("--map", map_folder, "--gallery", app.uri)
        for command in ("plan", "apply"):
            assert run(command, tmp_path / "upgrade", *words) == 1
            assert "holds no vectors yet" in capsys.readouterr().err

    def test_repeated_ids(self, make_app, map_folder, tmp_path, capsys):
        app = make_app("postgres").filled()
        app.db.execute("alter table items drop constraint items_pkey")
        app.db.execute("insert into items (key, embedding) select key, embedding from items "
                       "where key < 12")  # fmt: skip
        assert run("apply", tmp_path / "upgrade", "--map", map_folder, "--gallery", app.uri) == 1
        assert "repeated ids (" in capsys.readouterr().err

    def test_columns_and_maps_that_do_not_fit(self, make_app, map_folder, tmp_path, capsys):
        app, upgrade = make_app("postgres").filled(), tmp_path / "upgrade"
        words = ("--map", map_folder, "--gallery", app.uri)
        assert run("apply", upgrade, *words, "--id-column", "key") == 1
        assert "named in its URI" in capsys.readouterr().err
        assert run("switch", upgrade) == 1
        assert "not translated yet" in capsys.readouterr().err
        assert run("plan", upgrade, *words, "--order", "class_mean") == 1
        assert run("plan", upgrade, *words) == 0
        assert run("switch", upgrade) == 1
        assert "not translated yet" in capsys.readouterr().err
        assert run("apply", upgrade, "--gallery", "qdrant://:memory:/items") == 1
        secret = app.uri.replace("postgres@", "postgres:hunter2@")
        assert run("apply", tmp_path / "other", "--map", map_folder, "--gallery", secret) == 1
        assert "hunter2" not in capsys.readouterr().err
        assert not (tmp_path / "other").exists()

    def test_somebody_else_has_switched(self, make_app, open_store, map_folder, tmp_path, capsys):
        app, upgrade = make_app("postgres").filled(), tmp_path / "upgrade"
        assert run("apply", upgrade, "--map", map_folder, "--gallery", app.uri) == 0
        pointer = open_store(app.uri).pointer()
        assert run("switch", upgrade, "--calibration", tmp_path / "none") == 1
        assert "no calibration in" in capsys.readouterr().err
        made = calibrate(vectors(300, 2), new_model(vectors(300, 2))).save(tmp_path / "made")
        assert run("switch", upgrade, "--calibration", made) == 0
        assert pointer.current()["calibration"] == str(made)
        pointer.switch({"store": "qdrant://elsewhere/items"}, 1)
        assert run("switch", upgrade, "--back") == 1
        assert "readers follow qdrant://elsewhere/items" in capsys.readouterr().err

    def test_a_connection_that_is_cut(
        self, make_app, open_store, map_folder, tmp_path, monkeypatch
    ):
        app, upgrade = make_app("postgres").filled(), tmp_path / "upgrade"
        monkeypatch.setattr("fct_jax.upgrade.stores.base.BATCH_ROWS", 128)
        left, append = itertools.count(), Journal.append

        def cutting(journal, kind, **values):
            if next(left) in (3, 8):
                app.db.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity "
                    "where pid <> pg_backend_pid() and usename = 'postgres'"
                )
            return append(journal, kind, **values)

        monkeypatch.setattr(Journal, "append", cutting)
        codes = [run("apply", upgrade, "--map", map_folder, "--gallery", app.uri) for _ in range(3)]
        assert codes == [1, 1, 0]
        h, now = load_map(map_folder), Upgrade(upgrade).status(recall_queries=0)
        assert_agree(app, open_store(now.target), lambda rows: h.transform(rows)[0], 1e-5)
