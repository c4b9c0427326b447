"""The text files of IJB-B and IJB-C, in the form that face recognition papers share them.

``ijbc_face_tid_mid.txt`` (image, template, media), ``ijbc_template_pair_label.txt`` (two templates,
same person or not) and ``ijbc_1N_gallery_G1.csv`` or ``ijbc_1N_probe_mixed.csv`` (template,
person, …).
"""

import csv
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fct_jax.data.lists import FileReader, LabelledFiles
from fct_jax.errors import UserError
from fct_jax.storage.ids import listed


class Media(NamedTuple):
    """``images`` (N,) str; ``templates`` and ``media`` (N,) int64, to which each belongs."""

    images: np.ndarray
    templates: np.ndarray
    media: np.ndarray


class Pairs(NamedTuple):
    """Templates ``first`` and ``second`` (P,) int64; ``same`` (P,) bool: whether persons match."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


class Subjects(NamedTuple):
    """``templates`` (T,) int64, each once, and the person of each, ``subjects`` (T,) int64."""

    templates: np.ndarray
    subjects: np.ndarray


def read_media(path: str | Path) -> Media:
    """Read ``image template media`` lines.

    Raises:
      UserError: a malformed line (the message gives file and line), or a file that is missing or
        empty.
    """
    images, numbers = [], []
    for number, line in _lines(path):
        fields = line.rsplit(maxsplit=2)
        if len(fields) != 3 or not _whole(fields[1:]):
            raise UserError(f"{path}, line {number}: {line!r} is not 'image template media'")
        images.append(fields[0])
        numbers.append((int(fields[1]), int(fields[2])))
    table = np.array(_some(numbers, path), np.int64)
    return Media(np.array(images), table[:, 0], table[:, 1])


def read_scores(path: str | Path, images) -> np.ndarray:
    """Return the score (N,) float64 of each of the ``images`` from ``image … score`` lines.

    Fields in between (five facial landmarks, for example) and other images are ignored.

    Raises:
      UserError: a malformed line (the message gives file and line), images without a score, or a
        file that is missing or empty.
    """
    score_of = {}
    for number, line in _lines(path):
        fields = line.split()
        try:
            score_of[fields[0]] = float(fields[-1]) if len(fields) > 1 else math.nan
        except ValueError:
            score_of[fields[0]] = math.nan
        if not 0 <= score_of[fields[0]] < math.inf:
            raise UserError(f"{path}, line {number}: {line!r} is not 'image … score', 0 or more")
    _some(score_of, path)
    absent = sorted({str(image) for image in images} - score_of.keys())
    if absent:
        raise UserError(f"{path} has no score for {len(absent)} images, first {absent[0]}")
    return np.array([score_of[str(image)] for image in images])


def read_pairs(path: str | Path) -> Pairs:
    """Read ``template template same`` lines, with same 1 or 0.

    Raises:
      UserError: a malformed line (the message gives file and line), or a file that is missing or
        empty.
    """
    table = _whole_table(path)
    if table is None or table.shape[1] != 3 or (table < 0).any() or (table[:, 2] > 1).any():
        rows = []
        for number, line in _lines(path):
            fields = line.split()
            if len(fields) != 3 or not _whole(fields) or int(fields[2]) > 1:
                raise UserError(
                    f"{path}, line {number}: {line!r} is not 'template template same' "
                    "with same 0 or 1"
                )
            rows.append([int(field) for field in fields])
        table = np.array(_some(rows, path), np.int64)
    return Pairs(table[:, 0], table[:, 1], table[:, 2] == 1)


def read_subjects(path: str | Path) -> Subjects:
    """Read the templates and their persons from a gallery or probe CSV.

    Only the columns ``TEMPLATE_ID`` and ``SUBJECT_ID`` are read; a template has a row for each of
    its images.

    Raises:
      UserError: a missing column, a field that is not a number or a template of two persons (the
        message gives file and line), or a file that is missing or empty.
    """
    lines = _lines(path)
    _, first = next(lines, (0, ""))
    header = [name.strip() for name in next(csv.reader([_some(first, path)]))]
    missing = [name for name in ("TEMPLATE_ID", "SUBJECT_ID") if name not in header]
    if missing:
        raise UserError(f"{path}, line 1: no column {' and '.join(missing)}")
    columns = [header.index("TEMPLATE_ID"), header.index("SUBJECT_ID")]
    person_of: dict[int, int] = {}
    for number, line in lines:
        row = next(csv.reader([line]))
        fields = [row[column].strip() for column in columns if column < len(row)]
        if len(fields) != 2 or not _whole(fields):
            raise UserError(f"{path}, line {number}: {line!r} has no numbers for template, person")
        template, person = map(int, fields)
        if person_of.setdefault(template, person) != person:
            raise UserError(
                f"{path}, line {number}: template {template} is of person {person} here "
                f"and of {person_of[template]} before"
            )
    _some(person_of, path)
    return Subjects(np.fromiter(person_of, np.int64), np.fromiter(person_of.values(), np.int64))


def protocol_beside(media_file: str | Path) -> tuple[Pairs, Subjects, Subjects]:
    """Return pairs, gallery and probe from the files beside ``NAME_face_tid_mid.txt``.

    They are ``NAME_template_pair_label.txt``, ``NAME_1N_gallery_*.csv`` (the files hold different
    persons and together form one gallery) and ``NAME_1N_probe_mixed.csv``.

    Raises:
      UserError: ``media_file`` is named differently, there is no gallery, or one of the readers
        raises it.
    """
    path, ending = Path(media_file), "_face_tid_mid.txt"
    if not path.name.endswith(ending):
        raise UserError(f"{path} must be called NAME{ending}, which gives NAME for its protocol")
    name = path.name.removesuffix(ending)
    galleries = sorted(path.parent.glob(f"{name}_1N_gallery_*.csv"))
    if not galleries:
        raise UserError(f"no file {path.parent / name}_1N_gallery_*.csv")
    pairs = read_pairs(path.with_name(f"{name}_template_pair_label.txt"))
    parts = [read_subjects(gallery) for gallery in galleries]
    gallery = Subjects(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return pairs, gallery, read_subjects(path.with_name(f"{name}_1N_probe_mixed.csv"))


def ijb_reader(root: str | Path, media_file: str | Path) -> LabelledFiles:
    """Return a reader of ``media_file``'s aligned faces below ``root``, each once, without class.

    Raises:
      UserError: as in `read_media`, or images are missing.
    """
    images = list(dict.fromkeys(read_media(media_file).images.tolist()))
    return LabelledFiles(FileReader(str(media_file), root, images, [-1] * len(images), ()))


def rows_of(media: Media, ids: np.ndarray) -> np.ndarray:
    """Return the row (N,) of each image in an EmbeddingSet with these ``ids``.

    Raises:
      UserError: images have no embedding; the message gives their number and the first ten.
    """
    row_of = {name: row for row, name in enumerate(np.asarray(ids).tolist())}
    names = media.images.tolist()
    absent = sorted({name for name in names if name not in row_of})
    if absent:
        raise UserError(f"{len(absent)} images have no embedding: {listed(absent)}")
    return np.array([row_of[name] for name in names], np.int64)


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of the lines that are not empty."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _whole_table(path: str | Path) -> np.ndarray | None:
    """Read a file of integers at once (IJB-C has 15 million pairs); None: go through it by line."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file, warnings.catch_warnings(action="error"):
            return np.loadtxt(file, np.int64, comments=None, ndmin=2)
    except (OSError, ValueError, Warning):
        return None


def _whole(fields: list[str]) -> bool:
    return all(field.isascii() and field.isdecimal() and len(field) < 19 for field in fields)


def _some(found, path: str | Path):
    if not found:
        raise UserError(f"{path} is empty")
    return found
