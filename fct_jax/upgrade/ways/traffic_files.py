"""Readers of traffic files: NumPy, text, CSV, JSON lines and Parquet; a new form is one row."""

import csv
import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError

WEIGHTS = ("weight", "count")  # names of the column that says how often an id is asked for


def read_file(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return ids (S,) and weights (S,) float64, or None for a log, by the file's ending.

    Raises UserError for content that is no traffic, and OSError or ValueError for a file that
    cannot be read.
    """
    if path.suffix.lower() == ".npz":
        raise UserError(f"traffic={path} must be one table or array, not an .npz archive")
    return _READERS.get(path.suffix.lower(), _of_text)(path)


def _of_array(path: Path):
    found = np.load(path, allow_pickle=False)
    fields = found.dtype.names
    column = _weights_among(fields) if fields else None
    if found.ndim != 1 or (fields and ("id" not in fields or column is None or len(fields) != 2)):
        raise UserError(
            f"traffic={path} must be (S,) ids, or have the fields 'id' and 'weight' or 'count', "
            f"not {found.dtype} {found.shape}"
        )
    if fields:
        return found["id"], found[column].astype(np.float64)
    if found.dtype.kind == "f":
        raise UserError(
            f"traffic={path} must be (S,) ids, integers or text, or have the fields 'id' and "
            f"'weight', not {found.dtype}"
        )
    return found, None


def _of_text(path: Path):
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    split = ((number, line.replace(",", " ").split()) for number, line in lines)
    return _collected(path, ((n, p) for n, p in split if p and not p[0].startswith("#")))


def _of_csv(path: Path):
    """Read a table with the columns "id" and "weight" or "count", or two columns without names."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        lines = [(rows.line_num, [cell.strip() for cell in row]) for row in rows if any(row)]
    named = [name.lower() for name in lines[0][1]] if lines else []
    if "id" not in named:
        return _collected(path, lines)
    weight = _weights_among(named)
    if weight is None and len(named) > 1:
        raise UserError(f"traffic={path} has no column 'weight' or 'count', only {named}")
    places = [named.index(name) for name in ("id", weight) if name]
    for number, cells in lines[1:]:
        if len(cells) != len(named):
            raise UserError(
                f"traffic={path}, line {number}: {len(cells)} values for {len(named)} columns"
            )
    return _collected(path, ((number, [cells[i] for i in places]) for number, cells in lines[1:]))


def _of_json_lines(path: Path):
    """Read lines such as {"id": 7, "count": 3}; without a weight each line is asked once."""

    def lines():
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    found = json.loads(line)
                    yield (
                        number,
                        [str(found["id"]), *(str(found[w]) for w in WEIGHTS if w in found)],
                    )
                except (ValueError, KeyError, TypeError):
                    raise UserError(
                        f'traffic={path}, line {number} must be like {{"id": 7, "count": 3}}, '
                        f"not {line.strip()[:60]!r}"
                    ) from None

    return _collected(path, lines())


def _of_parquet(path: Path):
    import pyarrow.parquet as pq  # late: most traffic is no Parquet

    named = pq.read_schema(path).names
    weight = _weights_among(named)
    if "id" not in named or (weight is None and len(named) > 1):
        raise UserError(
            f"traffic={path} must have the columns 'id' and 'weight' or 'count', not {named}"
        )
    found = pq.read_table(path, columns=[name for name in ("id", weight) if name])
    ids = found["id"].to_numpy()
    if ids.dtype.kind not in "iu":
        ids = ids.astype(str)
    return ids, None if weight is None else found[weight].to_numpy().astype(np.float64)


def _weights_among(names) -> str | None:
    return next((name for name in WEIGHTS if name in names), None)


def _collected(path: Path, lines):
    """Return ids and weights of (line number, [id] or [id, weight])."""
    ids, weights = [], []
    for number, parts in lines:
        if len(parts) > 2 or (ids and (len(parts) == 2) != bool(weights)):
            raise UserError(
                f"traffic={path}, line {number}: every line must have an id, or every line an id "
                f"and a weight, not {' '.join(parts)!r}"
            )
        ids.append(parts[0])
        if len(parts) == 2:
            try:
                weights.append(float(parts[1]))
            except ValueError:
                raise UserError(
                    f"traffic={path}, line {number}: the weight must be a number, not {parts[1]!r}"
                ) from None
    return np.array(ids, str), np.array(weights) if weights else None


# ending of a file -> its reader; every other file is text
_READERS = {
    ".npy": _of_array,
    ".csv": _of_csv,
    ".tsv": _of_csv,
    ".jsonl": _of_json_lines,
    ".ndjson": _of_json_lines,
    ".parquet": _of_parquet,
}
