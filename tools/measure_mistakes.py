"""Measure how many common mistakes are found: ``python -m tools.measure_mistakes``.

Each mistake is made with real vectors, in the gallery, in the sample, or among the new vectors,
and the files then go through the commands that a user would run: ``doctor`` on the file, `fit` on
the sample, `apply` on the gallery. The table in docs/formats.md says which of these found the
mistake, and whether the message names it.

The thresholds of the checks were chosen with the dictionary entries (``--on entries``); the other
sets of vectors (``--on sentences``, ``emoji`` and ``digits``) took no part in that, so their counts
are held out.

The encoders themselves are not needed. A text prefix is imitated with vectors: the mean over the
words of an entry and of a prefix, as the smaller encoder computes it. A different model of the same
size is imitated by the other encoder, whose vectors are cut, or padded and rotated, and normalised.
"""

import argparse
import contextlib
import dataclasses
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime import progress
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.checks.doctor import examine
from fct_jax.upgrade.maps.fitting import fit
from fct_jax.upgrade.migration.upgrade import Upgrade
from tools import measure_gate

# name -> function that returns the vectors of the same items by two models
DATA = {
    "entries": measure_gate.text,
    "sentences": measure_gate.sentences,
    "emoji": measure_gate.emoji,
    "digits": measure_gate.digits,
}
PLACES = ("gallery", "sample_old", "sample_new", "reembed")
STEPS = ("doctor", "fit", "apply")


@dataclasses.dataclass
class Files:
    """Vectors (n, D) and ids (n,) of each of the four files of an upgrade."""

    gallery: tuple
    sample_old: tuple
    sample_new: tuple
    reembed: tuple


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A common mistake.

    Attributes:
      what: a description in words.
      place: the file in which the mistake is made.
      named: a regular expression that matches the messages that name the mistake.
      make: ``(vectors, ids, vectors by another model of the same size, random generator) ->
        (vectors, ids)`` with the mistake.
    """

    what: str
    place: str
    named: str
    make: Callable


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows with length 1."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def other_model(vectors: np.ndarray, dim: int, rng) -> np.ndarray:
    """Return the vectors as a model of ``dim`` dimensions: cut, or padded and rotated."""
    if vectors.shape[1] >= dim:
        return unit(vectors[:, :dim])
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0][: vectors.shape[1]]
    return unit(vectors @ turn)


def _some(vectors, other, chosen):
    return np.where(chosen[:, None], other, vectors)


def _part(start: float, stop: float):
    """Return a function that takes one stretch of the file from another model."""

    def make(vectors, ids, other, rng):
        place = np.arange(len(ids)) / len(ids)
        return _some(vectors, other, (place >= start) & (place < stop)), ids

    return make


def _random_half(vectors, ids, other, rng):
    return _some(vectors, other, rng.random(len(ids)) < 0.5), ids


def _lengths(share: float):
    """Return a function that leaves a share of the rows without normalisation."""

    def make(vectors, ids, other, rng):
        lengths = np.where(rng.random(len(ids)) < share, rng.uniform(2, 9, len(ids)), 1)
        return (vectors * lengths[:, None]).astype(np.float32), ids

    return make


def _cut(vectors, ids, other, rng):
    return vectors[:, : vectors.shape[1] * 3 // 4].copy(), ids


def _cut_and_padded(vectors, ids, other, rng):
    kept = vectors[:, : vectors.shape[1] * 3 // 4]
    return np.pad(kept, ((0, 0), (0, vectors.shape[1] - kept.shape[1]))), ids


def _prefix(share: float):
    """Return a function that gives a share of the texts a prefix, one word in four of theirs."""

    def make(vectors, ids, other, rng):
        word = vectors[rng.integers(len(vectors))]
        chosen = np.arange(len(ids)) >= (1 - share) * len(ids)
        return _some(vectors, unit(0.75 * vectors + 0.25 * word), chosen), ids

    return make


def _shuffled(vectors, ids, other, rng):
    return vectors, rng.permutation(ids)


def _shifted(vectors, ids, other, rng):
    return vectors, np.roll(ids, 1)


def _all(vectors, ids, other, rng):
    return other, ids


_MODEL = r"another model|two models|other model"
_LENGTH = r"normali[sz]ed|length"
_CUT = r"Matryoshka|cut to fewer"
_PREFIXED = "prefix"
_ORDER = "shuffled|does not pair ids|rows shifted"

# fmt: off
MISTAKES = [
    *(
        mistake
        for place in PLACES
        for mistake in (
            Mistake("all by another model", place, _MODEL, _all),
            Mistake("the second half by another model", place, _MODEL, _part(0.5, 1)),
            Mistake("half, here and there, by another model", place, _MODEL, _random_half),
            Mistake("the last fifth by another model", place, _MODEL, _part(0.8, 1)),
            Mistake("not normalised", place, _LENGTH, _lengths(1)),
            Mistake("a third not normalised", place, _LENGTH, _lengths(1 / 3)),
            Mistake("cut to three quarters, not normalised again", place, _CUT, _cut),
            Mistake("cut, and padded with zeros", place, f"{_CUT}|zeros", _cut_and_padded),
            Mistake("a prefix before every text", place, _PREFIXED, _prefix(1)),
            Mistake("a prefix before the second half", place, _PREFIXED, _prefix(0.5)),
            Mistake("ids shuffled", place, _ORDER, _shuffled),
            Mistake("ids shifted by a row", place, _ORDER, _shifted),
        )
    ),
    Mistake("old and new files swapped", "sample", "direction|dimension", None),
]
# fmt: on


def files_of(old: np.ndarray, new: np.ndarray, pairs: int, rng) -> Files:
    """Return sound files: the gallery has all rows, the sample some of them."""
    ids = rng.permutation(10 * len(old))[: len(old)]
    some = np.sort(rng.permutation(len(old))[:pairs])
    return Files((old, ids), (old[some], ids[some]), (new[some], ids[some]), (new, ids))


def spoilt(files: Files, mistake: Mistake, old, new, rng) -> Files:
    """Return the files with a mistake in one of them."""
    if mistake.make is None:
        return dataclasses.replace(files, sample_old=files.sample_new, sample_new=files.sample_old)
    vectors, ids = getattr(files, mistake.place)
    is_old = mistake.place in ("gallery", "sample_old")
    source = new if is_old else old
    if len(ids) < len(old):
        rows = {i: r for r, i in enumerate(files.gallery[1].tolist())}
        source = source[[rows[i] for i in ids.tolist()]]
    other = other_model(source, vectors.shape[1], rng)
    return dataclasses.replace(files, **{mistake.place: mistake.make(vectors, ids, other, rng)})


def found_by(files: Files, place: str, folder: Path) -> tuple[str, str]:
    """Return the step that finds something in the files, and its message; ("", "") if none does.

    Errors and findings count; a warning that says "cannot tell" does not.
    """
    paths = {}
    for name in PLACES:
        vectors, ids = getattr(files, name)
        paths[name] = EmbeddingSet.of(vectors, ids).write(folder / name)
    seen = examine(paths.get(place, paths["sample_old"])).findings
    if seen:
        return "doctor", "; ".join(f"{finding.kind}: {finding.text}" for finding in seen)
    step = "fit"
    try:
        found = fit(paths["sample_old"], paths["sample_new"], method="ridge")
        step = "apply"
        run = Upgrade(folder / "up")
        run.apply(found, paths["gallery"], reembed=str(paths["reembed"]), batch_items=1000)
    except UserError as error:
        return step, str(error)
    return "", ""


def measure(old, new, pairs: int, repeats: int, mistakes=MISTAKES) -> list[dict]:
    """Return for each mistake how often each step found it, and how often it was named."""
    rows = []
    for mistake in [None, *mistakes]:
        row = {"what": mistake.what if mistake else "none", "place": mistake.place if mistake else
               "", **dict.fromkeys(STEPS, 0), "named": 0, "repeats": repeats}  # fmt: skip
        for repeat in range(repeats):
            rng = np.random.default_rng(repeat)
            files = files_of(old, new, pairs, rng)
            if mistake is not None:
                files = spoilt(files, mistake, old, new, rng)
            with tempfile.TemporaryDirectory() as folder, _silent():
                step, said = found_by(files, row["place"], Path(folder))
            if step:
                row[step] += 1
                row["named"] += bool(mistake and re.search(mistake.named, said))
                row["said"] = said
        rows.append(row)
    return rows


@contextlib.contextmanager
def _silent():
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def table(rows: list[dict]) -> str:
    """Return a Markdown table: for each mistake and file, which step found it."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        found = {step: row[step] for step in STEPS if row[step]}
        found["not found"] = row["repeats"] - sum(found.values())
        told = [
            step if count == row["repeats"] else f"{step} {count}/{row['repeats']}"
            for step, count in found.items()
            if count
        ]
        if row["named"] < sum(row[step] for step in STEPS):
            told.append(f"named {row['named']}/{row['repeats']}")
        cells.setdefault(row["what"], {})[row["place"]] = ", ".join(told)
    places = {"gallery": "gallery", "sample_old": "old sample", "sample_new": "new sample",
              "reembed": "new vectors"}  # fmt: skip
    lines = [f"| mistake | {' | '.join(places.values())} |", "|---|---|---|---|---|"]
    for what, by_place in cells.items():
        everywhere = by_place.get("") or by_place.get("sample")
        told = [everywhere or by_place[place] for place in places]
        lines.append(f"| {what} | {' | '.join(told)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--on", choices=DATA, default="entries", help="the vectors")
    parser.add_argument("--rows", type=int, default=6000, help="rows of the gallery")
    parser.add_argument("--pairs", type=int, default=2000, help="pairs of the sample")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--say", action="store_true", help="print one message of each")
    arguments = parser.parse_args()
    progress.silence()
    old, new = DATA[arguments.on]()
    chosen = np.sort(np.random.default_rng(0).permutation(len(old))[: arguments.rows])
    old, new = unit(old[chosen]), unit(new[chosen])
    rows = measure(old, new, arguments.pairs, arguments.repeats)
    print(table(rows))
    found = sum(sum(row[step] for step in STEPS) for row in rows[1:])
    named = sum(row["named"] for row in rows[1:])
    tried = sum(row["repeats"] for row in rows[1:])
    print(f"\n{found} of {tried} found, {named} named; {len(MISTAKES)} kinds")
    if arguments.say:
        for row in rows:
            print(f"{row['place']}, {row['what']}: {row.get('said', '')}\n")


if __name__ == "__main__":
    main()
