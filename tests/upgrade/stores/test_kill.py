"""A migration killed again and again, with the application writing in between, ends well."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import LONG
from store_apps import COUNT, NEW, OLD, QdrantApp, assert_agree, ids, vectors

from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade import fit
from fct_jax.upgrade.stores import NEW as REEMBEDDED

HELPERS = Path(__file__).parents[2] / "helpers"
MOMENTS = (3, 13, 8, 2)  # steps until each run dies; the last runs die while they catch up


def run(script: str, *words, **environment) -> subprocess.CompletedProcess:
    """Run a script that kills itself."""
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), str(HELPERS)])
    command = [sys.executable, str(HELPERS / script), *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": path, **environment}
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
        """Close the application's database meanwhile: only one process can open a local one."""
        if kind == "qdrant":
            app.close()

    journal, killed = tmp_path / "journal.jsonl", 0
    for number, moment in enumerate(MOMENTS):
        closed()
        done = run("kill_migrate.py", app.uri, journal, moment)
        killed += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        app.open()
        some = ids("int", COUNT + 9 * number, COUNT + 9 * number + 9)
        app.put(some, vectors(9, number))
        app.put(ids("int", 50 * number, 50 * number + 5), vectors(5, 100 + number))
        app.delete(ids("int", 700 + 7 * number, 704 + 7 * number))
    assert killed >= 3
    closed()
    done = run("kill_migrate.py", app.uri, journal, 0)
    assert done.returncode == 0, done.stderr
    app.open()
    where, generation = done.stdout.split()
    assert generation == "1"  # switched once, however often it was killed
    assert_agree(app, open_store(where))


SECRET = "hunter2-Zq9"


def new_model(rows):
    """Return the new model's vectors for old ones."""
    turn = np.random.default_rng(9).normal(size=(OLD, NEW)).astype(np.float32)
    made = np.asarray(rows, np.float32) @ turn
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.slow(minutes=1)
@pytest.mark.multiprocess
def test_killed_commands_go_on(make_app, open_store, tmp_path):
    """Signal 9 kills plan, apply and switch at random moments, while the application writes."""
    app = make_app("postgres").filled()
    have, upgrade = app.rows(), tmp_path / "upgrade"
    keys = np.array(sorted(have))
    rows = np.stack([have[one] for one in keys.tolist()])
    EmbeddingSet.of(new_model(rows), keys).write(tmp_path / "new")
    some = [EmbeddingSet.of(part[:400], keys[:400]) for part in (rows, new_model(rows))]
    h = fit(*some, method="ridge", metric="cosine", out=tmp_path / "map")
    rng, killed, outputs = np.random.default_rng(5), 0, []
    apply = ("apply", upgrade, "--reembed", tmp_path / "new", "--batch-items", 100)
    plan = ("plan", upgrade, "--map", tmp_path / "map", "--gallery", app.uri, "--budget-items", 500)

    def command(moment, *words):
        secrets = {"PGPASSWORD": SECRET, "QDRANT_API_KEY": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
        done = run("kill_command.py", moment, app.uri, *words, **secrets)
        outputs.append(done.stdout + done.stderr)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode == -signal.SIGKILL

    assert not command(0, *plan)
    for number in range(5):
        killed += command(int(rng.integers(1, 12)), *apply)
        app.put(ids("int", COUNT + 9 * number, COUNT + 9 * number + 9), vectors(9, number))
        app.put(ids("int", 50 * number, 50 * number + 5), vectors(5, 100 + number))
        app.delete(ids("int", 700 + 7 * number, 704 + 7 * number))
    assert not command(0, *apply)
    for moment in rng.integers(1, 6, 3).tolist():
        killed += command(moment, "switch", upgrade)
    assert not command(0, "switch", upgrade)
    assert killed >= 5
    now = open_store(app.uri).pointer().current()
    assert now["generation"] == 1  # switched once, however often it was killed
    target = open_store(now["store"])
    now_there = app.rows()
    states = target.states(target.id_array(list(now_there)))
    done = {one for one, (version, _) in states.items() if version == REEMBEDDED}
    assert 400 < len(done) <= 500
    want = {one: h.transform(row[None])[0][0] for one, row in now_there.items()}
    want |= {one: new_model(have[one][None])[0] for one in done}  # as the EmbeddingSet has them
    got = app.rows(target)
    assert want.keys() == got.keys()
    for one, row in want.items():
        np.testing.assert_allclose(got[one], row, atol=1e-5)
    files = [path for path in upgrade.rglob("*") if path.is_file()]
    assert files and not any(SECRET.encode() in path.read_bytes() for path in files)
    assert not any(SECRET in output for output in outputs)
