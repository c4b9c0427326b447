"""Selections of a data set's classes: ``""``, ``"first 50"`` or ``"0-5,10-53"``."""

import re

from fct_jax.errors import UserError

_FORMS = "write '' (all), 'first 50', or ids and ranges like '0-5,10-53'"


def parse_classes(text: str, num_classes: int) -> tuple[int, ...] | None:
    """Return the class ids that ``text`` selects, sorted; None for all.

    Args:
      text: ``""`` selects all, ``"first K"`` ids 0..K-1, ``"0-5,10-53,60"`` ids and inclusive
        ranges.
      num_classes: number of classes in the data set.

    Raises:
      UserError: ``text`` has another form, names an id that the data set does not have, or selects
        nothing.
    """
    if not isinstance(text, str):
        raise UserError(f"data.classes must be a string, not {text!r}; {_FORMS}")
    text = text.strip()
    if not text:
        return None
    if first := re.fullmatch(r"first\s+(\d+)", text):
        count = int(first[1])
        if not 1 <= count <= num_classes:
            raise UserError(
                f"data.classes={text!r}: the data set has {num_classes} classes; "
                f"the nearest right value is 'first {min(max(count, 1), num_classes)}'"
            )
        return tuple(range(count))
    selected: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise UserError(f"data.classes={text!r}: cannot read {part.strip()!r}; {_FORMS}")
        low, high = int(match[1]), int(match[2] or match[1])
        if low > high:
            raise UserError(f"data.classes={text!r}: empty range {part.strip()!r}; {_FORMS}")
        if high >= num_classes:
            raise UserError(
                f"data.classes={text!r}: no class {high}; ids go from 0 to {num_classes - 1}"
            )
        selected.update(range(low, high + 1))
    return tuple(sorted(selected))
