"""A migration killed again and again, with the application writing in between, ends well."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import LONG
from store_apps import COUNT, QdrantApp, assert_agree, ids, vectors

SCRIPT = Path(__file__).parents[2] / "helpers" / "kill_migrate.py"
MOMENTS = (3, 8, 13, 6, 3, 2)  # steps of each run until it dies; the last ones in catching up


def run(uri: str, journal: Path, moment: int) -> subprocess.CompletedProcess:
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), str(SCRIPT.parent)])
    command = [sys.executable, str(SCRIPT), uri, str(journal), str(moment)]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG, env=environment)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["postgres", "qdrant", "lance", "milvus"])
def test_killed_clients_go_on(kind, make_app, open_store, tmp_path):
    if kind == "qdrant":
        pytest.importorskip("qdrant_client", reason="Qdrant: pip install 'fct_jax[qdrant]'")
        app = QdrantApp(f"qdrant://{tmp_path}/db", "int").filled()
    else:
        app = make_app(kind).filled()

    def closed():
        """A local database is open in one process at a time."""
        if kind == "qdrant":
            app.close()

    journal, killed = tmp_path / "journal.jsonl", 0
    for number, moment in enumerate(MOMENTS):
        closed()
        done = run(app.uri, journal, moment)
        killed += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        app.open()
        some = ids("int", COUNT + 9 * number, COUNT + 9 * number + 9)
        app.put(some, vectors(9, number))
        app.put(ids("int", 50 * number, 50 * number + 5), vectors(5, 100 + number))
        app.delete(ids("int", 700 + 7 * number, 704 + 7 * number))
    assert killed >= 4
    closed()
    done = run(app.uri, journal, 0)
    assert done.returncode == 0, done.stderr
    app.open()
    where, generation = done.stdout.split()
    assert generation == "1"  # switched once, however often it was killed
    assert_agree(app, open_store(where))
