"""Traffic as people have it: a log of ids in the order asked, or ids with weights."""

import dataclasses
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.ids import first_ten
from fct_jax.storage.named import array_of
from fct_jax.upgrade.ways.judgements import rows_of_ids
from fct_jax.upgrade.ways.traffic_files import read_file


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The rows that are asked for.

    Attributes:
      rows: (S,) int64 rows in the order of the file.
      weights: (S,) float64 how often each is asked for; None for a log, in which each entry is
        one time.
      notes: what was left out, in one sentence, or empty.
    """

    rows: np.ndarray
    weights: np.ndarray | None
    notes: tuple[str, ...] = ()

    def per_row(self, count: int) -> np.ndarray:
        """Return how often each of ``count`` rows is asked for, (count,) float64."""
        return np.bincount(self.rows, self.weights, minlength=count).astype(np.float64)

    def stream(self, length: int, seed: int) -> np.ndarray:
        """Return the rows in the order asked: the log itself, or ``length`` drawn by weight."""
        if self.weights is None:
            return self.rows
        chance = self.weights / self.weights.sum()
        return self.rows[np.random.default_rng(seed).choice(len(self.rows), length, p=chance)]


def read_traffic(where) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the ids (S,) of a traffic file and their weights (S,), or None for a log.

    Args:
      where: a ``.npy`` file of ids, which is a log, or with the fields "id" and "weight" (or
        "count"); CSV, JSON lines or Parquet with such columns; or a text file with an id in each
        line, or an id and a weight with a tab, comma or space between. Lines that start with "#"
        are comments there.

    Raises:
      UserError: a file that cannot be read, or weights that are negative or all 0; the message
        names the line.

    Example: ``ids, weights = read_traffic("queries.log")``.
    """
    path = Path(where).expanduser()
    try:
        ids, weights = read_file(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"traffic={where} cannot be read: {error}") from None
    if not len(ids):
        raise UserError(f"traffic={where} is empty")
    if weights is not None and not ((weights >= 0) & np.isfinite(weights)).all():
        bad = int(np.argmin((weights >= 0) & np.isfinite(weights)))
        raise UserError(
            f"traffic={where}: weights must be finite and at least 0, not {weights[bad]:g} of "
            f"{ids[bad]}"
        )
    if weights is not None and not weights.any():
        raise UserError(f"traffic={where}: all weights are 0")
    return ids, weights


def traffic_of(read, ids: np.ndarray, what: str) -> Traffic | None:
    """Return the traffic among some ids, or None if the file names none of them.

    read: what `read_traffic` returned; ids: (N,); what: what has these ids, for the note: "query".
    """
    named, weights = read
    rows = rows_of_ids(ids, named)
    known = rows >= 0
    if not known.any() or (weights is not None and not weights[known].any()):
        return None
    notes = ()
    if not known.all():
        missing = first_ten(np.unique(named[~known]))
        notes = (
            f"{int((~known).sum()):,} of {len(named):,} entries of the traffic name no {what} and "
            f"are left out: {missing}.",
        )
    return Traffic(rows[known], None if weights is None else weights[known], notes)


def by_query_or_item(
    read, query_ids: np.ndarray, item_ids: np.ndarray
) -> tuple[Traffic | None, Traffic | None]:
    """Return the traffic of queries, and that of items, of which the file has at least one.

    A file is of queries if it names any; if items query each other it is of both.

    read: what `read_traffic` returned, or None for none. Raises UserError if it names neither.
    """
    if read is None:
        return None, None
    queries = traffic_of(read, query_ids, "query")
    if queries is not None and query_ids is not item_ids:
        return queries, None
    items = traffic_of(read, item_ids, "item of the test gallery")
    if items is None:
        raise UserError(
            f"traffic: none of {len(read[0]):,} entries names a query or an item of the test "
            f"gallery: it has ids such as {read[0][0]}, the queries have ids such as "
            f"{query_ids[0]}, the items such as {item_ids[0]}"
        )
    return queries, items


def counts_of(given, ids: np.ndarray):
    """Return how often each item is asked for, (N,) or None, and notes on what was left out.

    given: (N,) counts or a ``.npy`` file of them, in the order of the items; or any other file
    that `read_traffic` takes, which names the items by their ids (N,); None or "" for none.
    Raises UserError for a file that names none of them.
    """
    if not isinstance(given, str | Path) or not str(given):
        return array_of(given, "traffic"), ()
    path = Path(given).expanduser()
    if path.suffix == ".npy" and not (path.is_file() and _names_ids(path)):
        return array_of(path, "traffic"), ()
    found = traffic_of(read_traffic(path), ids, "item")
    if found is None:
        raise UserError(f"traffic={given} names none of the {len(ids):,} items, such as {ids[0]}")
    return found.per_row(len(ids)), found.notes


def among(
    traffic: Traffic, kept: np.ndarray, count: int, length: int, seed: int
) -> tuple[np.ndarray | None, list[str]]:
    """Return the stream among the ``kept`` of ``count`` queries, as places in ``kept``, and notes.

    ``length`` queries are drawn of a file with weights. None is the stream if no query is left.
    """
    place = np.full(count, -1)
    place[kept] = np.arange(len(kept))
    assessed = place[traffic.rows] >= 0
    notes = list(traffic.notes)
    if not assessed.all():
        notes.append(
            f"{int((~assessed).sum()):,} entries of the traffic ask queries that are not assessed, "
            "and are left out."
        )
    weights = None if traffic.weights is None else traffic.weights[assessed]
    if not assessed.any() or (weights is not None and not weights.any()):
        return None, [*notes, "None of the traffic is left: each query is asked once."]
    return place[Traffic(traffic.rows[assessed], weights).stream(length, seed)], notes


def _names_ids(path: Path) -> bool:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).dtype.names is not None
    except (OSError, ValueError, EOFError):
        return False  # whoever reads it says what is wrong
