"""Servers that go away in the middle: one line for the user, and repeat the command to resume."""

import os
import signal
import time

import pytest
import servers
from patience import LONG
from store_apps import NEW, MilvusApp, assert_agree, plain_map

from fct_jax.errors import UserError
from fct_jax.upgrade.stores.migrate import migrate

META = {"fingerprint": "away"}


def interrupted(at: int, action):
    """Return the map of the tests, which also does something else at its n-th batch."""
    left = [at]

    def mapped(rows):
        left[0] -= 1
        if not left[0]:
            action()
        return plain_map(rows)

    return mapped


def patiently(open_store, uri: str):
    """Return the store once its client's channel has noticed that the server is back."""
    deadline = time.monotonic() + LONG
    while True:
        try:
            return open_store(uri)
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_a_connection_that_is_cut(make_app, open_store, tmp_path):
    app = make_app("postgres").filled()
    store = open_store(app.uri)
    target = store.sibling(NEW, META)

    def cut():
        app.db.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where pid <> pg_backend_pid() and usename = 'postgres'"
        )

    journal = tmp_path / "journal.jsonl"
    with pytest.raises(UserError, match="repeat the command to resume") as error:
        migrate(store, target, interrupted(4, cut), journal, limit=100)
    assert "\n" not in str(error.value)
    store = open_store(app.uri)
    target = store.sibling(NEW, META)
    migrate(store, target, plain_map, journal, limit=100)
    assert_agree(app, target)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_server_that_is_killed(open_store, tmp_path):
    with servers.milvus_lite(tmp_path) as (where, child):
        app = MilvusApp(f"milvus://{where}", "int").filled()
        store = open_store(app.uri)
        target, journal = store.sibling(NEW, META), tmp_path / "journal.jsonl"

        def kill():
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()

        with pytest.raises(UserError, match="repeat the command to resume"):
            migrate(store, target, interrupted(4, kill), journal, limit=100)
    with servers.milvus_lite(tmp_path, int(where.partition(":")[2])):
        store = patiently(open_store, app.uri)
        target = store.sibling(NEW, META)
        migrate(store, target, plain_map, journal, limit=100)
        app.close()
        app = MilvusApp(f"milvus://{where}", "int")
        assert_agree(app, target)
        app.close()
