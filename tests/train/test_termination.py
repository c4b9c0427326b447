"""SIGTERM ends a process at once if nothing can be saved, otherwise after the step."""

import signal

import pytest

from fct_jax.runtime import sharding
from fct_jax.train.termination import Termination


def test_before_training_it_ends_at_once(capsys):
    with Termination(sharding.make_mesh()), pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 0
    assert "nothing to save" in capsys.readouterr().out


def test_in_training_it_is_a_request():
    with Termination(sharding.make_mesh()) as termination:
        termination.begin()
        assert not termination.asked()
        signal.raise_signal(signal.SIGTERM)
        assert termination.asked()


def test_afterwards_the_signal_means_what_it_meant_before():
    before = signal.getsignal(signal.SIGTERM)
    with Termination(sharding.make_mesh()):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
