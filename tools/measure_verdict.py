"""Measure the verdict of ``assess`` on pairs of models whose truth is known:
``python -m tools.measure_verdict``, for docs/known-answers.md.

The tests check the verdict on the families of pairs on which its rules were made
(tests/helpers/known_truth.py). No constant was chosen on the families measured here: they have
other items, dimensions and seeds, and other ways to be better or worse. *Right* is "upgrade" for a
better new model, "keep" for an equal or worse one, and "keep" or a refusal for one that knows
nothing; "cannot tell" is neither right nor wrong.
"""

import argparse
import collections
import dataclasses
import sys
import time

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade import assess
from tools.measure_gate import DATA

COUNT, QUERIES, SEED = 500, 150, 5000
YARDSTICKS = ("labels", "judged pairs")
RIGHT = {
    "better, more directions": {"upgrade"},
    "better, less noise": {"upgrade"},
    "equal, turned": {"keep"},
    "worse, fewer directions": {"keep"},
    "worse, more noise": {"keep"},
    "half of the rows are another's": {"keep", "refused"},
    "all directions but three are lost": {"keep", "refused"},
}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A gallery by both models with labels, and queries with the row that each should find."""

    old: np.ndarray
    new: np.ndarray
    labels: np.ndarray
    query_old: np.ndarray
    query_new: np.ndarray
    wanted: np.ndarray


def pictures(rng):
    """Return vectors and classes of pictures of emoji that no model was trained on."""
    return (np.load(DATA / "emoji" / f"validation_{v}.npy") for v in ("new", "labels"))


def sentences(rng):
    """Return vectors of usage examples, and the topics of their entries."""
    entries = np.load(DATA / "text" / "query_relevant.npy")
    topics = np.load(DATA / "text" / "group.npy")[entries]
    return np.load(DATA / "text" / "query_new.npy").astype(np.float32), topics


def tumours(rng):
    """Return 30 measurements of tumours, and ten classes by their size."""
    from sklearn.datasets import load_breast_cancer

    rows = load_breast_cancer().data
    rows = (rows - rows.mean(0)) / rows.std(0)
    return rows, np.argsort(np.argsort(rows[:, 0])) * 10 // len(rows)


def factors(rng):
    """Return made-up vectors of 24 dimensions in 40 classes of very different sizes."""
    shares = 1 / np.arange(1, 41)
    labels = rng.choice(40, 2000, p=shares / shares.sum())
    return rng.normal(size=(40, 24))[labels] + 0.8 * rng.normal(size=(2000, 24)), labels


def heavy_tails(rng):
    """Return made-up vectors of 200 dimensions with few, large values, in 15 classes."""
    labels = rng.integers(15, size=2000)
    rows = rng.standard_t(3, (15, 200))[labels] + 1.5 * rng.standard_t(3, (2000, 200))
    return rows * np.geomspace(1, 0.2, 200), labels


FAMILIES = {
    "emoji, other pictures": pictures,
    "text, usage examples": sentences,
    "tumours": tumours,
    "factors": factors,
    "heavy tails": heavy_tails,
}


def pair(family: str, truth: str, seed: int) -> Pair:
    """Return a pair of models over a family's vectors whose truth is known."""
    rng = np.random.default_rng(SEED + seed)
    rows, labels = FAMILIES[family](rng)
    chosen = rng.permutation(len(rows))[:COUNT]
    rows, labels = np.asarray(rows, np.float64)[chosen], labels[chosen]
    rows = (rows - rows.mean(0)) / rows.std()
    wanted = rng.permutation(len(rows))[:QUERIES]
    both = np.concatenate([rows, rows[wanted] + 0.8 * rng.normal(size=rows[wanted].shape)])
    dim = both.shape[1]

    def turned(dims):
        return np.linalg.qr(rng.normal(size=(dim, dim)))[0][:, :dims]

    def model(dims=dim, noise=0.25):
        return both @ turned(dims) + noise * rng.normal(size=(len(both), dims))

    old, few = model(), max(5, dim // 6)
    if truth == "better, more directions":
        old, new = model(few), old
    elif truth == "better, less noise":
        old, new = model(noise=1.5), old
    elif truth == "equal, turned":
        new = old @ turned(dim)
    elif truth == "worse, fewer directions":
        new = model(few)
    elif truth == "worse, more noise":
        new = model(noise=1.5)
    elif truth == "half of the rows are another's":
        new = model()
        half = rng.permutation(len(rows))[: len(rows) // 2]
        new[half] = new[rng.permutation(half)]
    else:
        new = model(3, noise=0.25)
    units = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (old, new)]
    split = [(unit[: len(rows)], unit[len(rows) :]) for unit in units]
    return Pair(split[0][0], split[1][0], labels, split[0][1], split[1][1], wanted)


def advice(found: Pair, yardstick: str) -> tuple[str, str]:
    """Return the advice on a pair, or "refused", and its wording."""
    given = {"labels": found.labels}
    if yardstick == "judged pairs":
        given = {"query_old": found.query_old, "query_new": found.query_new}
        given["judged"] = found.wanted
    settings = {"shares": (0.5,), "max_queries": 200, "resamples": 300, "method": "ridge"}
    try:
        made = assess(None, found.old, found.new, **settings, **given)
    except UserError as error:
        return "refused", str(error)
    return made.advice, made.text


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return 1 if any advice was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[1])
    parser.add_argument("--seeds", type=int, default=1, help="pairs of each kind (default 1)")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    given = parser.parse_args(arguments)
    table = collections.defaultdict(collections.Counter)
    wrong, begin = [], time.monotonic()
    for family in given.families:
        for truth, right in RIGHT.items():
            for seed in range(given.seeds):
                found = pair(family, truth, seed)
                for yardstick in YARDSTICKS:
                    said, words = advice(found, yardstick)
                    outcome = "right" if said in right else said
                    if outcome not in ("right", "cannot tell"):
                        outcome = "wrong"
                        wrong.append(f"{family}, {truth}, seed {seed}, {yardstick}: {words}")
                    table[truth, yardstick][outcome] += 1
                    print(f"{family}, {truth}, {yardstick}: {said}", file=sys.stderr, flush=True)
    print("| new model | judged by | right | cannot tell | wrong |\n|---|---|---:|---:|---:|")
    for (truth, yardstick), counts in table.items():
        cells = [counts[outcome] for outcome in ("right", "cannot tell", "wrong")]
        print(f"| {truth} | {yardstick} | {' | '.join(map(str, cells))} |")
    pairs = given.seeds * len(given.families) * len(RIGHT)
    print(f"\n{pairs} pairs, {time.monotonic() - begin:.0f} s")
    for line in wrong:
        print(f"wrong: {line}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
