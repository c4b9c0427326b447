"""Asking again where a failure may pass, after a jittered pause or when the server says."""

import email.utils
import random
import re
import threading
import time
from collections.abc import Callable

from fct_jax.errors import UserError

FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED = 0.5, 30.0, 300.0  # seconds
_PASSING = {408, 409, 425, 429}  # besides 5xx
_NAMES = re.compile("Connect|Timeout|RateLimit")  # of the exceptions that clients raise


class Again(Exception):
    """A failure that may pass; ``wait``: seconds that the server asks for, or None."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class Patience:
    """Asks so many times, with pauses that end where ``stop`` is set."""

    def __init__(self, attempts: int, stop: threading.Event):
        self._attempts, self._stop, self._random = attempts, stop, random.Random()

    def __call__(self, name: str, ask: Callable):
        """Return what ``ask()`` gives; raises UserError where it goes on to raise `Again`."""
        for attempt in range(1, self._attempts + 1):
            try:
                return ask()
            except Again as failure:
                reason = failure
            if attempt < self._attempts and self._stop.wait(self.wait(attempt, reason.wait)):
                break  # another request has failed for good
        raise UserError(f"{name} failed at attempt {attempt} of {self._attempts}: {reason}")

    def wait(self, attempt: int, asked: float | None) -> float:
        """Return the seconds until the next attempt: as the server asks, or doubling with jitter.

        The jitter keeps parallel requests from coming back all at once.
        """
        if asked is not None:
            return min(asked, LONGEST_ASKED)
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1))
        return longest * self._random.uniform(0.5, 1)


def may_pass(status: int) -> bool:
    """Return whether an answer of this HTTP status may be another one later."""
    return status in _PASSING or status >= 500


def again_of(error: Exception) -> Again | None:
    """Return what an exception of some client stands for: None if asking again is of no use.

    Clients of HTTP tell the status by ``status_code``, ``code`` or ``response``, and name
    exceptions of a connection by what happened.
    """
    response = getattr(error, "response", None)
    given = [getattr(error, "status_code", None), getattr(error, "code", None)]
    given.append(getattr(response, "status_code", None))
    status = next((value for value in given if isinstance(value, int)), None)
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if status is not None:
        headers = getattr(response, "headers", None) or getattr(error, "headers", None) or {}
        return Again(said, retry_after(headers.get("Retry-After"))) if may_pass(status) else None
    passing = any(_NAMES.search(kind.__name__) for kind in type(error).__mro__)
    return Again(said) if passing else None


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a ``Retry-After``: a number, or a date; None if there is neither."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
