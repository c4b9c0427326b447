"""SIGTERM ends a process at once if nothing can be saved, otherwise after the step."""

import signal
import subprocess
import sys

import pytest
import tiny_runs
from patience import LONG

from fct_jax.runtime import sharding
from fct_jax.train.termination import Termination


def test_before_training_it_ends_at_once(capsys):
    with Termination(), pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 0
    assert "nothing to save" in capsys.readouterr().out


def test_in_training_it_is_a_request():
    with Termination() as termination:
        mesh = sharding.make_mesh()
        assert not termination.asked(mesh)
        signal.raise_signal(signal.SIGTERM)
        assert termination.asked(mesh)


def test_afterwards_the_signal_means_what_it_meant_before():
    before = signal.getsignal(signal.SIGTERM)
    with Termination():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_before_training_it_ends_even_in_compiled_code():
    """Python's own handler cannot run: the main thread waits for a lock of the C library."""
    program = (
        "import ctypes\n"
        "from fct_jax.runtime import processes\n"
        "from fct_jax.train.termination import Termination\n"
        "mutex = ctypes.create_string_buffer(256)\n"
        "removed = lambda: print('lock removed')\n"
        "with Termination(), processes.finally_calling(removed):\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(2):\n"
        "        ctypes.CDLL(None).pthread_mutex_lock(mutex)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tiny_runs.REPOSITORY,
        env=tiny_runs.ENVIRONMENT,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) == 0
        *lines, last = process.stdout.read().splitlines()
    assert lines == ["terminated before the first step; there was nothing to save"]
    assert last == "lock removed"
