"""Worker processes: what they read, and what happens when one dies."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from absl import logging
from patience import LONG
from tiny_batches import digits, folder, same, take

from fct_jax.data import Preprocessing, batches
from fct_jax.errors import UserError

SMALL = Preprocessing(size=8)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_worker_processes(damaged):
    """Workers return the same as threads, from any position and in any number."""
    source = folder(damaged, on_error="skip")
    crop = Preprocessing(size=12, train_crop="random_resized")

    def new(workers):
        return batches(source, crop, batch_size=6, train=True, seed=1, epochs=4, workers=workers)

    here = new(0)
    everything = take(here)
    before = set(multiprocessing.active_children())
    there = new(2)
    there.seek(2)
    first = take(there, 2)  # workers take turns, so both have begun
    for worker in set(multiprocessing.active_children()) - before:
        os.kill(worker.pid, signal.SIGTERM)  # meant for the training, which saves
        os.kill(worker.pid, signal.SIGINT)
    same(first + take(there), everything[2:])
    there.close()
    assert there.skipped == here.skipped and len(here.skipped) == 3

    failing = batches(source, crop, batch_size=6, train=False, seed=1, workers=1, on_error="raise")
    with pytest.raises(UserError, match=r"training/0/3\.png"):
        take(failing)
    failing.close()


def kill(iterator_before: set) -> None:
    """Kill one of the workers that started since."""
    worker = min(set(multiprocessing.active_children()) - iterator_before, key=lambda p: p.pid)
    os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.multiprocess
def test_a_dead_worker_is_an_error_and_no_hang():
    before = set(multiprocessing.active_children())
    iterator = batches(digits(), SMALL, batch_size=10, train=True, seed=0, workers=1)
    next(iterator)
    kill(before)
    with pytest.raises(
        UserError, match=r"data worker 0 of 1 died \(killed by SIGKILL\).*data.work"
    ):
        take(iterator, 1000)
    iterator.close()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_dead_worker_is_started_again_where_errors_are_skipped(damaged, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    source = folder(damaged, on_error="skip")

    def new(workers):
        return batches(source, SMALL, batch_size=2, train=False, seed=0, workers=workers)

    before = set(multiprocessing.active_children())
    iterator = new(1)
    first = take(iterator, 2)
    kill(before)
    same(first + take(iterator), take(new(0)))
    iterator.close()
    assert "data worker 0 of 1 died (killed by SIGKILL); all are started again" in caplog.text


READS = """
import multiprocessing, time, ml_collections
from fct_jax.data import Preprocessing, batches, open_source

if __name__ == "__main__":
    source = open_source(ml_collections.ConfigDict({"name": "digits"}), "train")
    stream = batches(source, Preprocessing(size=8), batch_size=9, train=True, seed=0, workers=1)
    next(stream)
    print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
    time.sleep(3600)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_workers_end_with_a_killed_training(tmp_path):
    """Otherwise every kill would leave processes behind that wait for ever."""
    (tmp_path / "reads.py").write_text(READS)
    command = [sys.executable, tmp_path / "reads.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watch = threading.Timer(LONG, process.kill)
        watch.start()
        workers = [Path("/proc", pid) for pid in process.stdout.readline().split()]
        watch.cancel()
        process.kill()
    assert workers
    deadline = time.monotonic() + LONG
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < deadline, "workers are left"
        time.sleep(0.05)
