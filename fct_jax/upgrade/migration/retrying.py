"""Retries after temporary failures, with a jittered pause or at the time the server gives."""

import email.utils
import random
import re
import threading
import time
from collections.abc import Callable

from fct_jax.errors import UserError

FIRST_WAIT, LONGEST_WAIT, LONGEST_ASKED = 0.5, 30.0, 300.0  # seconds
_PASSING = {408, 409, 425, 429}  # temporary statuses besides 5xx
_NAMES = re.compile("Connect|Timeout|RateLimit")  # in names of clients' exceptions


class Again(Exception):
    """A temporary failure; ``wait``: seconds to wait by the server's request, or None."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class Patience:
    """Makes up to ``attempts`` attempts, with pauses that end when ``stop`` is set."""

    def __init__(self, attempts: int, stop: threading.Event):
        self._attempts, self._stop, self._random = attempts, stop, random.Random()

    def __call__(self, name: str, ask: Callable):
        """Return the result of ``ask()``; raises UserError if it keeps raising `Again`."""
        for attempt in range(1, self._attempts + 1):
            try:
                return ask()
            except Again as failure:
                reason = failure
            if attempt < self._attempts and self._stop.wait(self.wait(attempt, reason.wait)):
                break  # another request has failed permanently
        raise UserError(f"{name} failed at attempt {attempt} of {self._attempts}: {reason}")

    def wait(self, attempt: int, asked: float | None) -> float:
        """Return the seconds until the next attempt: the server's wish, or doubling with jitter.

        The jitter spreads the retries of parallel requests.
        """
        if asked is not None:
            return min(asked, LONGEST_ASKED)
        longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1))
        return longest * self._random.uniform(0.5, 1)


def may_pass(status: int) -> bool:
    """Return whether this HTTP status is temporary."""
    return status in _PASSING or status >= 500


def again_of(error: Exception) -> Again | None:
    """Convert a client's exception to `Again`, or to None if a retry is useless.

    HTTP clients give the status as ``status_code``, ``code`` or ``response``, and the names of
    their connection errors are descriptive.
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
    """Return the seconds in a ``Retry-After`` header, a number or a date; None if it is neither."""
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
