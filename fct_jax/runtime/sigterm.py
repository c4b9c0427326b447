"""SIGTERM is noticed at once, even while the main thread is in compiled code.

Python runs a signal's handler in the main thread, between two of its own instructions, which a
compilation can keep from coming for minutes. The system's own handler writes to a pipe at once.
"""

import os
import signal
import threading
from collections.abc import Callable


class Watch:
    """Context that calls ``action`` in a thread of its own when SIGTERM comes.

    Contexts nest: the innermost one acts. Only the main thread may watch; elsewhere (in some test
    runners) the context does nothing.

    Args:
      action: called without arguments, once for each signal.
      handler: called in the main thread, as soon as Python gets to it.
    """

    def __init__(self, action: Callable[[], None], handler: Callable[[], None] = lambda: None):
        self._action, self._handler = action, handler
        self._ends: tuple[int, int] | None = None

    def __enter__(self) -> "Watch":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ends = os.pipe()
        os.set_blocking(self._ends[1], False)
        self._fd_before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
        self._before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # None: not Python's
        self.renew()
        wait = threading.Thread(target=self._wait, args=self._ends[:1], name="SIGTERM", daemon=True)
        wait.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._ends is None:
            return
        signal.signal(signal.SIGTERM, self._before)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._ends[1])  # ends the thread
        self._ends = None

    def renew(self) -> None:
        """Take the signal again from whoever has taken it since."""
        if self._ends is not None:
            signal.signal(signal.SIGTERM, lambda *_: self._handler())

    def _wait(self, end: int) -> None:
        while signals := os.read(end, 64):
            if signal.SIGTERM in signals:
                self._action()
        os.close(end)
