"""Ctrl-C while a command still imports what it needs ends it with one line.

Import this module first: it costs nothing, and importing JAX takes seconds on a busy machine.
"""

import os
import signal
import sys
import threading


def _end(signal_number, frame) -> None:
    sys.stderr.write("stopped before anything was begun\n")
    sys.stderr.flush()
    os._exit(_STATUS)


_STATUS = 130  # as of a program that Ctrl-C ended


def exit_status(status: int) -> None:
    """Choose the exit status of an early Ctrl-C."""
    global _STATUS
    _STATUS = status


def begun() -> None:
    """Give Ctrl-C its usual meaning, KeyboardInterrupt: from here on the command handles it."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _install() -> None:
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


_install()
