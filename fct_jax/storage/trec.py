"""Judgements and rankings in the formats of TREC's evaluation tools and of BEIR folders.

    query 0 item grade             TREC qrels, fields separated by blanks
    query Q0 item rank score tag   TREC run
    query<TAB>item<TAB>grade       BEIR, qrels/NAME.tsv, below a header line

Files are UTF-8, and ``.gz`` is read as well. Ids in TREC files cannot contain blanks; ids in
BEIR files cannot contain tabs. Other Unicode white space is part of an id, as for trec_eval.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.files import disk_errors, write_synced
from fct_jax.storage.ids import first_ten

_BLANKS = re.compile(r"[ \t\r\f\v]+")
_UNWRITABLE = re.compile(r"[ \t\r\n\f\v]|^$")
_QRELS = '"query 0 item grade" or, with tabs, "query item grade"'
_RUN = '"query Q0 item rank score tag"'
_SHOWN = 60  # characters of a malformed line


class Run(NamedTuple):
    """A ranking: queries (R,) and items (R,) of text, and scores (R,) float64.

    Queries come in the order of their first line, each with its best item first; equal scores keep
    the order of the file.
    """

    queries: np.ndarray
    items: np.ndarray
    scores: np.ndarray

    def judged(self, depth: int = 10) -> np.ndarray:
        """Return each query's first items as judged pairs, (P, 3) of text, of grade 1.

        They measure agreement with the run's system, not what people want.
        """
        _, start, place = np.unique(self.queries, return_index=True, return_inverse=True)
        rank = np.arange(len(self.queries)) - start[place]
        kept = rank < depth
        return _table([*zip(self.queries[kept], self.items[kept], ["1"] * kept.sum(), strict=True)])


class Beir(NamedTuple):
    """A BEIR folder.

    Attributes:
      item_ids, item_texts: items of corpus.jsonl, in its order; a title stands before its text.
      query_ids, query_texts: queries of queries.jsonl.
      judged: (P, 3) text: query id, item id, grade.
      unknown: number of judged pairs that name a query or an item not in the folder.
    """

    item_ids: np.ndarray
    item_texts: list[str]
    query_ids: np.ndarray
    query_texts: list[str]
    judged: np.ndarray
    unknown: int


def read_qrels(path) -> np.ndarray:
    """Return the judged pairs of a TREC qrels file or a BEIR ``.tsv``, (P, 3) text.

    A row is query id, item id and grade; pairs of grade 0 and below are kept. A pair that is judged
    twice with one grade is kept once. Raises UserError, with file and line, for a malformed line, a
    grade that is not a number, a pair with two grades, and for a run, which has no judgements.
    """
    found: dict[tuple[str, str], str] = {}
    for number, line in _lines(path):
        fields = _fields(line)
        if len(fields) == 6:
            raise UserError(
                f"{path}:{number}: this is a line of a run, which ranks and does not judge; "
                "fct_jax.storage.trec.read_run(…).judged(10) takes its first ten for relevant"
            )
        if len(fields) != (3 if line.count("\t") == 2 else 4):
            raise _malformed(path, number, _QRELS, line)
        query, item, grade = fields[0], fields[-2], fields[-1]
        if not _is_number(grade):
            if number == 1 and len(fields) == 3:
                continue  # the headings
            raise UserError(f"{path}:{number}: the grade must be a number, not {grade!r}")
        if float(found.setdefault((query, item), grade)) != float(grade):
            raise UserError(
                f"{path}:{number}: query {query!r} and item {item!r} are judged {grade} here and "
                f"{found[query, item]} before"
            )
    if not found:
        raise UserError(f"{path} holds no judged pair; a line is {_QRELS}")
    return _table([(*pair, grade) for pair, grade in found.items()])


def write_qrels(path, judged) -> None:
    """Write judged pairs (P, 2) or (P, 3) as a TREC qrels file; without grades they are 1.

    Raises UserError if the file exists or an id contains a blank.
    """
    judged = np.asarray(judged).astype(str)
    if judged.ndim != 2 or judged.shape[1] not in (2, 3):
        raise UserError(f"judged must have shape (P, 2) or (P, 3), not {judged.shape}")
    check_writable("a query", judged[:, 0])
    check_writable("an item", judged[:, 1])
    grades = judged[:, 2] if judged.shape[1] == 3 else ["1"] * len(judged)
    lines = zip(judged[:, 0], judged[:, 1], map(_grade, grades), strict=True)
    _write(path, "".join(f"{query} 0 {item} {grade}\n" for query, item, grade in lines))


def read_run(path) -> Run:
    """Return the ranking of a TREC run file; as for trec_eval, the score decides, not the rank.

    Raises UserError, with file and line, for a malformed line, a score that is not a number, and an
    item that a query ranks twice.
    """
    found: dict[str, dict[str, float]] = {}
    for number, line in _lines(path):
        fields = _BLANKS.split(line)
        if len(fields) != 6:
            raise _malformed(path, number, _RUN, line)
        query, _, item, _, score, _ = fields
        if not _is_number(score):
            raise UserError(f"{path}:{number}: the score must be a number, not {score!r}")
        mine = found.setdefault(query, {})
        if item in mine:
            raise UserError(f"{path}:{number}: query {query!r} ranks item {item!r} twice")
        mine[item] = float(score)
    if not found:
        raise UserError(f"{path} holds no result; a line is {_RUN}")
    ranked = [
        (query, item, score)
        for query, mine in found.items()
        for item, score in sorted(mine.items(), key=lambda pair: -pair[1])
    ]
    queries, items, scores = zip(*ranked, strict=True)
    return Run(np.array(queries), np.array(items), np.array(scores, np.float64))


def write_run(path, query_ids, item_ids, scores, tag: str = "fct_jax") -> None:
    """Write a ranking as a TREC run file.

    Args:
      path: a file that does not exist yet.
      query_ids: (Q,) integers or text.
      item_ids: (Q, K), the best first.
      scores: (Q, K); where one is not finite there is no result. A score that is not below the one
        before is written as the next smaller float32, so that every tool reads the same order:
        trec_eval breaks ties by the name of the item.
      tag: name of the run.

    Raises UserError where the file exists, or an id or the tag holds a blank.
    """
    query_ids, item_ids = np.asarray(query_ids).astype(str), np.asarray(item_ids).astype(str)
    scores = np.array(scores, np.float32)
    if item_ids.ndim != 2 or item_ids.shape != scores.shape or len(item_ids) != len(query_ids):
        raise UserError(
            f"a run needs items and scores (Q, K) of {len(query_ids)} queries, not "
            f"{item_ids.shape} and {scores.shape}"
        )
    there = np.isfinite(scores)
    check_writable("a query", query_ids)
    check_writable("an item", item_ids[there])
    check_writable("the run", np.array([tag]))
    scores[:, :1] = np.where(there[:, :1], scores[:, :1], np.inf)
    for i in range(1, scores.shape[1]):
        below = np.nextafter(scores[:, i - 1], np.float32(-np.inf))
        scores[:, i] = np.where(there[:, i], np.minimum(scores[:, i], below), scores[:, i - 1])
    lines = [
        f"{query} Q0 {items[i]} {rank} {float(own[i]):.9g} {tag}\n"
        for query, items, own, mine in zip(query_ids, item_ids, scores, there, strict=True)
        for rank, i in enumerate(np.flatnonzero(mine), start=1)
    ]
    _write(path, "".join(lines))


def check_writable(what: str, ids: np.ndarray) -> None:
    """Raise UserError for ids that a TREC file cannot hold: empty ones and ones with blanks."""
    wrong = [name for name in np.asarray(ids).astype(str).ravel() if _UNWRITABLE.search(name)]
    if wrong:
        raise UserError(
            f"a TREC file has no room for blanks, but here is one in the name of {what}: "
            f"{first_ten([repr(str(name)) for name in wrong])}"
        )


def qrels_of(folder, split: str = "") -> Path:
    """Return the file of judged pairs of a BEIR folder; split "": test, or the only one there is.

    Raises UserError where there is none, or several and no test.
    """
    folder = Path(folder)
    there = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    if not there:
        raise UserError(f"{folder} is not a BEIR folder: it has no qrels/*.tsv")
    wanted = split or ("test" if "test" in there or len(there) > 1 else next(iter(there)))
    if wanted not in there:
        raise UserError(
            f"{folder} has no qrels/{wanted}.tsv; name one of "
            f"{', '.join(str(path) for path in there.values())}"
        )
    return there[wanted]


def read_beir(folder, split: str = "") -> Beir:
    """Return a BEIR folder: corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv.

    split "": test, or the only one. Raises UserError, with file and line, for a line that is no
    JSON object with a text ``_id``, and for an id that comes twice.

    Example: embed ``found.item_texts`` and ``found.query_texts`` by both models, and give
    ``judged=folder`` to ``fct_jax.upgrade.assess``.
    """
    folder = Path(folder)
    judged = read_qrels(qrels_of(folder, split))
    items, queries = (_texts(folder / f"{name}.jsonl") for name in ("corpus", "queries"))
    unknown = sum(query not in queries or item not in items for query, item, _ in judged)
    ids = (np.array(list(part)) for part in (items, queries))
    return Beir(next(ids), [*items.values()], next(ids), [*queries.values()], judged, unknown)


def _texts(path: Path) -> dict[str, str]:
    """Return {id: title and text}."""
    if not path.exists() and path.with_name(f"{path.name}.gz").exists():
        path = path.with_name(f"{path.name}.gz")
    found: dict[str, str] = {}
    for number, line in _lines(path):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: this line is no JSON: {error.msg}") from None
        name = record.get("_id") if isinstance(record, dict) else None
        if not isinstance(name, str) or not name:
            raise _malformed(path, number, '{"_id": "…", "text": "…"}', line)
        if name in found:
            raise UserError(f"{path}:{number}: the id {name!r} comes twice")
        parts = (record.get("title"), record.get("text"))
        found[name] = " ".join(str(part) for part in parts if part)
    if not found:
        raise UserError(f"{path} is empty")
    return found


def _lines(path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty. Raises UserError for other encodings.

    Lines end with a line feed alone: Python's own rules would cut ids at separators of Unicode.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError:
                    raise UserError(f"{path}:{number}: this line is no UTF-8 text") from None
                line = line.strip(" \t\r\n\f\v")
                if line:
                    yield number, line
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _fields(line: str) -> list[str]:
    """Return the fields of a line of judgements; between tabs ids may hold blanks."""
    tabs = line.split("\t")
    return [field.strip(" ") for field in tabs] if len(tabs) == 3 else _BLANKS.split(line)


def _malformed(path, number: int, expected: str, line: str) -> UserError:
    shown = line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"
    return UserError(f"{path}:{number}: a line is {expected}, not {shown!r}")


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _grade(text: str) -> str:
    return f"{float(text):g}"  # trec_eval reads whole numbers: 1.0 is 1


def _table(rows: list[tuple[str, str, str]]) -> np.ndarray:
    return np.array(rows, dtype=str).reshape(-1, 3)


def _write(path, text: str) -> None:
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; nothing was overwritten")
    with disk_errors(path):
        write_synced(path, text.encode())
