"""Ctrl-C while a command is still importing modules ends it with one line.

Import this module first: it costs nothing, and importing JAX takes seconds on a busy machine.
"""

import os
import signal
import sys
import threading


def _end(signal_number, frame) -> None:
    sys.stderr.write("stopped before any work began\n")
    sys.stderr.flush()
    os._exit(_STATUS)


_STATUS = 130  # the usual status of a program ended by Ctrl-C


def exit_status(status: int) -> None:
    """Choose the exit status of an early Ctrl-C."""
    global _STATUS
    _STATUS = status


def begun() -> None:
    """Restore the usual meaning of Ctrl-C, KeyboardInterrupt, which the command now handles."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _install() -> None:
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


_install()
