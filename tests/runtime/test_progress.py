"""Progress lines: speed and time left leave out what happens once, such as compiling."""

import pytest

from fct_jax.runtime import progress
from fct_jax.runtime.progress import Bar


def test_the_first_step_is_not_counted(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False, raising=False)
    with Bar("translating", 1000, "vectors", done=100) as bar:
        now[0] = 300  # compiling took five minutes
        bar.advance(100)
        assert bar.rate == 0
        assert capsys.readouterr().err == "translating 200/1000\n"
        now[0] = 320
        bar.advance(200)
        assert bar.rate == pytest.approx(10)
        assert capsys.readouterr().err == "translating 400/1000, 10.0 vectors/s, 1:00 left\n"
