"""The suite itself: a test that hangs or kills its worker fails alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from patience import LONG

TESTS = {
    "test_deadly.py": """
        import os

        def test_before():
            pass

        def test_kills_its_worker():
            os.kill(os.getpid(), 9)

        def test_after():
            pass
        """,
    "test_slow.py": """
        import time

        import pytest

        @pytest.mark.timeout(2)
        def test_hangs():
            time.sleep(1000)

        def test_after_it():
            pass
        """,
}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_test_that_hangs_or_kills_its_worker_fails_alone(tmp_path):
    for name, text in TESTS.items():
        lines = [line.removeprefix(" " * 8) for line in text.splitlines()]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    helpers = Path(__file__).parents[1] / "helpers"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {helpers}\n")
    options = ["-v", "-n", "2", "--dist", "loadfile", "-p", "scheduling"]
    command = [sys.executable, "-m", "pytest", *options, "--timeout-method", "signal"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=LONG, check=False
    )
    said = done.stdout
    assert "INTERNALERROR" not in said + done.stderr
    assert "2 failed, 3 passed" in said, said
    assert "worker 'gw" in said and "crashed while running 'test_deadly.py::test_kills" in said
    assert "FAILED test_slow.py::test_hangs - Failed: Timeout" in said
