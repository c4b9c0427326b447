"""Landmark test sets: revisited Oxford and Paris from their pickles, GLDv2 from its CSV files."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fct_jax.data import safe_pickle
from fct_jax.data.lists import FileReader
from fct_jax.errors import UserError, unknown
from fct_jax.storage.ids import listed

KINDS = ("easy", "hard", "junk")
USAGES = ("Private", "Public", "Ignored")
EXTENSIONS = (".jpg", ".jpeg", ".png")


class RevisitedTruth(NamedTuple):
    """The contents of a ``gnd_*.pkl``: names without file extension, and for each query its ``bbx``
    (left, upper, right, lower in pixels) and gallery rows ``easy``, ``hard``, ``junk``."""

    imlist: list[str]
    qimlist: list[str]
    gnd: list[dict[str, Any]]


class LandmarkTruth(NamedTuple):
    """GLDv2: ids of the queries (Q,) and of the gallery (G,), and for each query the rows of the
    gallery that show its landmark."""

    queries: list[str]
    gallery: list[str]
    positives: list[np.ndarray]


def read_ground_truth(path: str | Path) -> RevisitedTruth:
    """Read ``gnd_roxford5k.pkl`` or ``gnd_rparis6k.pkl`` without running code from the file.

    Raises:
      UserError: the file does not exist, is a pickle of anything but plain data or has another
        layout; gallery rows are out of range; or the ground truth is empty.
    """
    try:
        with Path(path).open("rb") as file:
            content = safe_pickle.load(file, encoding="latin1")
    except OSError as error:
        raise UserError(f"cannot read ground truth {path}: {error.strerror}") from error
    parts = ("imlist", "qimlist", "gnd")
    if not isinstance(content, Mapping) or any(
        not isinstance(content.get(part), Sequence) for part in parts
    ):
        raise UserError(f"{path} is no ground truth: it needs the lists {', '.join(parts)}")
    imlist = [str(name) for name in content["imlist"]]
    qimlist = [str(name) for name in content["qimlist"]]
    if len(content["gnd"]) != len(qimlist):
        raise UserError(f"{path} has {len(qimlist)} queries but {len(content['gnd'])} entries")
    gnd = []
    for name, entry in zip(qimlist, content["gnd"], strict=True):
        if not isinstance(entry, Mapping) or not set(KINDS) <= set(entry):
            raise UserError(f"{path}: query {name} lacks one of {', '.join(KINDS)}")
        rows = {kind: _rows(entry[kind], len(imlist), f"{path}: query {name}") for kind in KINDS}
        box = [float(edge) for edge in entry["bbx"]] if entry.get("bbx") is not None else None
        gnd.append({"bbx": box, **rows})
    if not any(len(entry["easy"]) + len(entry["hard"]) for entry in gnd):
        raise UserError(f"the ground truth {path} is empty: no query has an easy or hard image")
    return RevisitedTruth(imlist, qimlist, gnd)


def revisited_readers(
    root: str | Path, truth: RevisitedTruth, *, query_crop: bool = False
) -> tuple[FileReader, FileReader]:
    """Return readers of the queries and of the gallery, from ``root/jpg/NAME.jpg``.

    ``query_crop`` crops each query to its box, as the benchmark defines; the default uses whole
    query images, as the published backward-compatible results do.

    Raises:
      UserError: images are missing, or a query has no box to crop to.
    """
    boxes = [entry["bbx"] for entry in truth.gnd] if query_crop else None
    if boxes is not None and None in boxes:
        raise UserError(f"query {truth.qimlist[boxes.index(None)]} has no box to crop to")
    folder = Path(root) / "jpg"
    queries = _reader("queries", folder, [f"{name}.jpg" for name in truth.qimlist], boxes)
    return queries, _reader("gallery", folder, [f"{name}.jpg" for name in truth.imlist])


def read_gldv2(solution: str | Path, index: str | Path, usage: str = "Private") -> LandmarkTruth:
    """Read Google Landmarks v2: ``retrieval_solution_v2.1.csv`` and the list of the index.

    Args:
      solution: CSV with ``id,images,Usage``; images are ids separated by spaces.
      index: CSV with a column ``id`` (``index.csv``), or the folder of the index images.
      usage: the queries to use; published results use the private ones.

    Raises:
      UserError: a file is missing or has other columns, no query of that usage has an image, or
        correct images are not in the index.
    """
    if usage not in USAGES:
        raise unknown("usage", usage, USAGES)
    wanted = {
        row["id"]: row["images"].split()
        for row in _read_csv(solution, ("id", "images", "Usage"))
        if row["Usage"] == usage and row["images"].strip() not in ("", "None")
    }
    if not wanted:
        raise UserError(f"the ground truth {solution} is empty: no {usage} query has an image")
    gallery = read_index(index)
    row_of = {name: row for row, name in enumerate(gallery)}
    absent = sorted({name for names in wanted.values() for name in names} - row_of.keys())
    if absent:
        raise UserError(
            f"{len(absent)} right images of {solution} are not in the index {index}: "
            f"{listed(absent)}"
        )
    positives = [np.array([row_of[name] for name in names]) for names in wanted.values()]
    return LandmarkTruth(list(wanted), gallery, positives)


def read_index(index: str | Path) -> list[str]:
    """Return the GLDv2 index's ids, from a CSV with a column ``id`` or an image folder (sorted).

    Raises:
      UserError: the file or folder does not exist, has no column ``id`` or no image, or an id
        occurs twice.
    """
    index = Path(index)
    if index.is_dir():
        files = (name for _, _, names in os.walk(index, followlinks=True) for name in names)
        ids = sorted(Path(name).stem for name in files if name.lower().endswith(EXTENSIONS))
    else:
        ids = [row["id"] for row in _read_csv(index, ("id",))]
    if not ids:
        raise UserError(f"the index {index} has no image")
    if len(set(ids)) < len(ids):
        raise UserError(f"the index {index} has {len(ids) - len(set(ids))} ids twice")
    return ids


def gldv2_path(image_id: str) -> str:
    """Return the released archives' path of an image: ``0123abc…`` -> ``0/1/2/0123abc….jpg``."""
    return f"{'/'.join(image_id[:3])}/{image_id}.jpg"


def gldv2_readers(root: str | Path, truth: LandmarkTruth) -> tuple[FileReader, FileReader]:
    """Return readers of the queries (``root/test``) and of the gallery (``root/index``).

    Raises:
      UserError: images are missing.
    """
    queries = _reader("queries", Path(root) / "test", [gldv2_path(i) for i in truth.queries])
    return queries, _reader("gallery", Path(root) / "index", [gldv2_path(i) for i in truth.gallery])


def _reader(
    name: str, folder: Path, paths: Sequence[str], boxes: Sequence[Sequence[float]] | None = None
) -> FileReader:
    # These images have no class: the ground truth says which ones match.
    return FileReader(f"{name} of {folder}", folder, paths, [-1] * len(paths), (), boxes)


def _rows(values, size: int, where: str) -> np.ndarray:
    rows = np.asarray(values)
    rows = rows.astype(np.int64) if rows.size == 0 else rows
    if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
        raise UserError(f"{where}: gallery rows must be a list of integers")
    if rows.size and (rows.min() < 0 or rows.max() >= size):
        raise UserError(f"{where}: gallery rows must lie in 0…{size - 1}")
    return rows.astype(np.int64)


def _read_csv(path: str | Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = [name for name in columns if name not in (table.fieldnames or ())]
            if missing:
                raise UserError(f"{path} has no column {', '.join(missing)}")
            rows = []
            for row in table:
                if any(row[name] is None for name in columns):
                    raise UserError(f"{path}, line {table.line_num}: a field is missing")
                rows.append(row)
            return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {path}: {error}") from error
