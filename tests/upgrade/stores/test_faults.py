"""Faults in the middle of a store's upgrade: afterwards old and new agree, row by row.

fault                            test
signal 9 to the client           test_kill.py, in every store, at steps and in commands
signal 9 to the server           test_a_server_that_dies (PostgreSQL), test_away.py (Milvus)
the network is cut               test_a_network_that_is_cut, through a proxy that drops
the disk is full                 test_a_full_disk
permission is refused            test_a_role_that_may_only_read
the table is changed underneath  test_a_table_that_is_changed_underneath
secrets in files and output      test_kill.py, test_uri.py
"""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from patience import LONG
from proxy import proxied
from store_apps import COUNT, NEW, assert_agree, ids, plain_map, vectors

from fct_jax import cli, load_map
from fct_jax.errors import UserError
from fct_jax.upgrade import Upgrade
from fct_jax.upgrade.migration.journal import Journal
from fct_jax.upgrade.stores.migrate import migrate, one_line

META = {"fingerprint": "faults"}


def run(*words) -> int:
    """Run a command; return its exit code."""
    return cli.main([str(word) for word in words])


def error_of(text: str) -> str:
    """Return the only line of an error output that is an error."""
    assert "Traceback" not in text
    (found,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return found


def agree(app, upgrade, open_store, map_folder):
    """Assert that the sibling has what the map gives for the application's rows."""
    h, now = load_map(map_folder), Upgrade(upgrade).status(recall_queries=0)
    assert_agree(app, open_store(now.target), lambda rows: h.transform(rows)[0], 1e-5)


def each_record(monkeypatch, action):
    """Call an action with the number of each record before it is written."""
    append, number = Journal.append, [0]

    def counted(journal, kind, **values):
        number[0] += 1
        action(number[0])
        return append(journal, kind, **values)

    monkeypatch.setattr(Journal, "append", counted)


def patiently(attempt, *arguments):
    """Return what an attempt returns once the server, which is just coming back, answers."""
    deadline = time.monotonic() + LONG
    while True:
        try:
            return attempt(*arguments)
        except Exception:  # psycopg's, which may be absent when this file is collected, or ours
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def kill_backend(number: int) -> None:
    """Kill a process of the server, and wait until the server has noticed.

    From then on it accepts nobody until it has recovered.
    """
    os.kill(number, signal.SIGKILL)
    deadline = time.monotonic() + LONG
    while Path("/proc", str(number)).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_server_that_dies(make_app, open_store, tmp_path):
    """Signal 9 to a server process makes PostgreSQL drop everybody and recover from its log."""
    app = make_app("postgres").filled()
    rng, journal, deaths = np.random.default_rng(3), tmp_path / "journal.jsonl", 0
    uri = app.uri
    for number in range(4):
        store = patiently(open_store, uri)
        target, left = store.sibling(NEW, META), [int(rng.integers(1, 9))]
        backend = store.ask("select pg_backend_pid()").fetchone()[0]

        def mapped(rows, left=left, backend=backend):
            left[0] -= 1
            if not left[0]:
                kill_backend(backend)
            return plain_map(rows)

        try:
            migrate(store, target, mapped, journal, limit=200, switch=False)
        except UserError as error:
            assert "repeat the command to resume" in str(error) and "\n" not in str(error)
            deaths += 1
        app = patiently(make_app, "postgres")
        app.put(ids("int", 40 * number, 40 * number + 5), vectors(5, number))
        app.delete(ids("int", 700 + 7 * number, 704 + 7 * number))
    assert deaths >= 2
    store = patiently(open_store, uri)
    target = store.sibling(NEW, META)
    migrate(store, target, plain_map, journal, limit=200)
    assert_agree(app, target)
    assert store.pointer().current()["generation"] == 1


@pytest.mark.slow
def test_a_network_that_is_cut(make_app, open_store, tmp_path):
    """A proxy cuts the connection after a random number of bytes, again and again."""
    app = make_app("postgres").filled()
    folder = Path(open_store(app.uri).uri.params["host"])
    (socket,) = [path for path in folder.iterdir() if path.name.startswith(".s.PGSQL")
                 and not path.name.endswith(".lock")]  # fmt: skip
    rng, journal, failed = np.random.default_rng(4), tmp_path / "journal.jsonl", 0
    with proxied(socket) as proxy:
        rest = app.uri.partition("?host=")[2].partition("&")[2]
        uri = f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres?{rest}"
        for number in range(8):
            proxy.cut_after(int(rng.integers(30_000, 300_000)))
            try:
                store = open_store(uri)
                with one_line(store):
                    target = store.sibling(NEW, META)
                migrate(store, target, plain_map, journal, limit=100)
            except UserError as error:
                assert "\n" not in str(error)
                failed += 1
            app.put(ids("int", 40 * number, 40 * number + 3), vectors(3, number))
        assert proxy.cuts >= 4 and failed >= 4
        proxy.cut_after(1 << 60)
        store = open_store(uri)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, journal, limit=100)
        assert_agree(app, target)
        assert store.pointer().current()["generation"] == 1


def test_a_full_disk(make_app, open_store, map_folder, tmp_path, monkeypatch, capsys):
    """The disk of the upgrade's directory is full at some record; the same command resumes."""
    monkeypatch.setattr("fct_jax.upgrade.stores.base.BATCH_ROWS", 256)
    app, upgrade = make_app("postgres").filled(), tmp_path / "upgrade"

    def full(number):
        if number in (1, 4, 9):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(upgrade / "journal.jsonl"))

    each_record(monkeypatch, full)
    codes = []
    for _ in range(4):
        codes.append(run("apply", upgrade, "--map", map_folder, "--gallery", app.uri))
        if codes[-1]:
            assert "No space left" in error_of(capsys.readouterr().err)
    assert codes == [1, 1, 1, 0]
    agree(app, upgrade, open_store, map_folder)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_disk_of_lance_that_is_full(make_app, open_store, map_folder, tmp_path):
    """Files cannot grow, as on a full disk: the command says so, and resumes."""
    app, upgrade = make_app("lance").filled(), tmp_path / "upgrade"
    words = ["apply", str(upgrade), "--map", str(map_folder), "--gallery", app.uri]
    code = (
        "import resource, sys\n"
        "from fct_jax.cli import main\n"
        "import lancedb\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=LONG,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 1, done.stderr
    assert "too large" in error_of(done.stderr)
    assert run(*words) == 0
    agree(app, upgrade, open_store, map_folder)


def test_a_role_that_may_only_read(make_app, open_store, map_folder, tmp_path, capsys):
    app, upgrade = make_app("postgres").filled(), tmp_path / "upgrade"
    app.db.execute(
        "do $$ begin if not exists (select from pg_roles where rolname = 'reader') then "
        "create role reader login; end if; end $$; revoke create on schema public from public; "
        "grant select on items to reader"
    )
    uri = app.uri.replace("postgres@", "reader@")
    assert run("doctor", uri, "--sample", 100) in (cli.DONE, cli.LOOK)
    capsys.readouterr()
    assert run("plan", upgrade, "--map", map_folder, "--gallery", uri, "--budget-items", 9) == 0
    capsys.readouterr()
    assert run("apply", upgrade) == 1
    assert "permission denied" in error_of(capsys.readouterr().err)
    tables = app.db.execute("select tablename from pg_tables where schemaname = 'public'")
    assert {name for (name,) in tables.fetchall()} == {"items"}
    app.db.execute("grant create on schema public to reader")
    assert run("apply", upgrade) == 0
    agree(app, upgrade, open_store, map_folder)
    app.db.execute("drop owned by reader")


def test_a_table_that_is_changed_underneath(
    make_app, open_store, map_folder, tmp_path, monkeypatch, capsys
):
    """A column is renamed, or the table is replaced by one of another dimension, in mid-apply."""
    monkeypatch.setattr("fct_jax.upgrade.stores.base.BATCH_ROWS", 256)
    app, upgrade = make_app("postgres").filled(), tmp_path / "upgrade"
    changes = {
        3: "alter table items rename column embedding to emb",
        6: "alter table items rename to kept; create table items as "
        "select key, title, '[1,2,3]'::vector(3) as embedding from kept",
    }
    undone = [
        "alter table items rename column emb to embedding",
        "drop table items; alter table kept rename to items",
    ]
    each_record(monkeypatch, lambda number: number in changes and app.db.execute(changes[number]))
    for undo in undone:
        assert run("apply", upgrade, "--map", map_folder, "--gallery", app.uri) == 1
        error_of(capsys.readouterr().err)
        app.db.execute(undo)
    assert run("apply", upgrade) == 0
    assert len(app.rows()) == COUNT
    agree(app, upgrade, open_store, map_folder)
