"""Runs commands in forks of a process that has imported everything, so that they start at once."""

import fnmatch
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["fct_jax.train.loop", "fct_jax.embed.command"])


class Process:
    """``python -m module …`` in a directory, with the methods of ``subprocess.Popen``.

    Args:
      module: the module of the command.
      arguments: the arguments of the command.
      home: the directory; output goes to ``home/output``.
      die_at: a pattern; the process kills itself just before it gives a file or a directory a
        matching path.
    """

    def __init__(self, module: str, arguments: list[str], home: Path, die_at: str = ""):
        self._process = _CONTEXT.Process(target=_run, args=(module, arguments, home, die_at))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> None:
        self._process.join(timeout)

    def kill(self) -> None:
        self._process.kill()


def _run(module: str, arguments: list[str], home: Path, die_at: str) -> None:
    os.chdir(home)
    sys.argv = [module, *arguments]
    with Path("output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for name in ("rename", "replace"):
        setattr(os, name, _dying(getattr(os, name), die_at))
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _dying(function, die_at: str):
    def changed(source, target, **more):
        if fnmatch.fnmatch(str(target), die_at):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(source, target, **more)

    return changed
