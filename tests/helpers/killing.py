"""Shared parts of the helpers that kill themselves (signal 9) at the n-th step and go on."""

import os
import signal
import sys
from collections.abc import Callable


class Fuse:
    """Counts steps, and kills this process at the n-th of them.

    At an even moment the process dies before the step is done, at an odd one after it.
    """

    def __init__(self, moment: int):
        """Set the ``moment`` n, counted from 1; with 0 or less the process is never killed."""
        self.moment, self._left = moment, moment

    def on(self, function: Callable, cut: Callable | None = None) -> Callable:
        """Return the function as a step. At the last step, ``cut`` does half of its work."""

        def step(*arguments, **keywords):
            self._left -= 1
            last = self._left == 0
            if last and (cut is not None or self.moment % 2 == 0):
                if cut is not None:
                    cut(*arguments, **keywords)
                os.kill(os.getpid(), signal.SIGKILL)
            found = function(*arguments, **keywords)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return step

    def on_methods(self, owner, *names: str) -> None:
        """Turn functions of a module, or methods of a class or an object, into steps."""
        for name in names:
            setattr(owner, name, self.on(getattr(owner, name)))


def killed(work: Callable, *arguments) -> bool:
    """Run ``work(*arguments)`` in a child; return whether it was killed. Raises if it failed."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 – never closed
        try:
            work(*arguments)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a child failed")
    return not os.WIFEXITED(status)
