"""The only exception for users' mistakes."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the input; its text is one line: what is wrong, where, the nearest right value.

    The commands print it without a traceback and exit with status 1.
    """


def unknown(what: str, given: str, known: Iterable[str]) -> UserError:
    """Return the error for an unlisted name: ``unknown model 'resnt18'; did you mean …``."""
    names = sorted(known)
    close = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UserError(f"unknown {what} {given!r}; {hint}known: {', '.join(names)}")
