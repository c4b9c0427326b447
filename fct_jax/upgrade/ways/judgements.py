"""Judged pairs from an array, a ``.npy`` file, TREC qrels, or a BEIR folder."""

import re
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.ids import find_rows, first_ten
from fct_jax.storage.named import array_of
from fct_jax.storage.trec import qrels_of, read_qrels

_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")


def judged_of(judged, role: str = "judged") -> np.ndarray | None:
    """Return judged pairs in the form of ``relevance.by_table``; None for None and "".

    Args:
      judged: an array, a ``.npy`` file, a TREC qrels file, a BEIR ``.tsv``, or a BEIR folder,
        of which qrels/test.tsv or the only file there is read.
      role: name of the argument, for messages.

    Raises:
      UserError: a file is missing or cannot be read; the message names file and line.
    """
    if not isinstance(judged, str | Path) or not str(judged):
        return array_of(judged, role)
    path = Path(judged).expanduser()
    if path.is_dir():
        return read_qrels(qrels_of(path))
    return array_of(path, role) if path.suffix == ".npy" else read_qrels(path)


def rows_of_ids(ids: np.ndarray, given) -> np.ndarray:
    """Return the row of each given id, −1 for unknown ids; the text "7" is the integer 7.

    ids: (N,) integers or text; given: (P,) numbers or text.
    """
    given = np.asarray(given)
    rows = np.full(len(given), -1)
    if given.dtype.kind == "f":
        whole = np.flatnonzero(np.isfinite(given) & (given == np.floor(given)))
        rows[whole] = rows_of_ids(ids, given[whole].astype(np.int64))
        return rows
    given, kept = of_kind(given, ids.dtype.kind != "U")
    rows[kept] = find_rows(ids, given)
    return rows


def of_kind(given: np.ndarray, integers: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return ids (P,) as integers or as text, and their rows among the given ones.

    Text that is no whole number is left out of integers.
    """
    every = np.arange(len(given))
    if not integers:
        return given.astype(str), every
    if given.dtype.kind != "U":
        return given.astype(np.int64), every
    whole = np.flatnonzero([bool(_WHOLE.fullmatch(name)) for name in given])
    return given[whole].astype(np.int64), whole


def unknown_ids(judged: np.ndarray, query_ids: np.ndarray, item_ids: np.ndarray) -> list[str]:
    """Return notes about judged pairs (P, 2) or (P, 3) with unknown ids.

    Raises UserError if every pair has an unknown id: then the ids are of another kind.
    """
    if judged.ndim != 2:
        return []
    notes, usable = [], np.ones(len(judged), bool)
    for what, column, ids in (("a query", 0, query_ids), ("an item", 1, item_ids)):
        names = judged[:, column]
        missing = rows_of_ids(ids, names) < 0
        usable &= ~missing
        if missing.any():
            some = first_ten(np.unique(names[missing]))
            notes.append(
                f"{int(missing.sum()):,} of {len(judged):,} judged pairs name {what} that does "
                f"not exist and are left out: {some}."
            )
    if len(judged) and not usable.any():
        raise UserError(
            f"none of {len(judged):,} judged pairs names an existing query and item: the pairs "
            f"have ids such as {_shown(judged[0, 0])} and {_shown(judged[0, 1])}, the vectors "
            f"have ids such as {_shown(query_ids[0])} and {_shown(item_ids[0])}"
        )
    return notes


def _shown(name) -> str:
    return repr(name.item() if isinstance(name, np.generic) else name)
