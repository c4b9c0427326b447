"""Pairs of embedding models for which it is known whether the new one is better.

They are made from existing vectors (scikit-learn's digits, and emoji and text vectors if the shared
data is there) and from made-up ones: a *strong* model, a *weak* one (few of the strong one's
directions, and noise), an *equal* one (the strong one rotated, with as much noise) and *dead* ones.
"""

import dataclasses
from pathlib import Path

import numpy as np

from fct_jax.runtime import threads

SHARED = Path(__file__).parents[3] / "shared" / "data"
TRUTHS = ("better", "equal", "worse", "dead", "collapsed")


@dataclasses.dataclass(frozen=True)
class Pair:
    """A gallery by both models with labels, and queries with the row that each should find."""

    old: np.ndarray
    new: np.ndarray
    labels: np.ndarray
    query_old: np.ndarray
    query_new: np.ndarray
    wanted: np.ndarray


def base(name: str, seed: int, count: int = 600, queries: int = 200):
    """Return clean vectors (N, D), labels (N,), queries (Q, D) and the rows they should find."""
    rng = np.random.default_rng(seed)
    if name == "synthetic":
        labels = rng.integers(0, 20, count)
        rows = rng.normal(size=(20, 48))[labels] + rng.normal(size=(count, 48))
    elif name == "digits":
        from sklearn.datasets import load_digits

        found = load_digits()
        chosen = rng.permutation(len(found.data))[:count]
        rows, labels = found.data[chosen], found.target[chosen]
    elif name == "emoji":
        rows = np.load(SHARED / "emoji" / "train_new.npy")
        chosen = rng.permutation(len(rows))[:count]
        rows, labels = rows[chosen], np.load(SHARED / "emoji" / "train_labels.npy")[chosen]
    else:
        rows = np.load(SHARED / "text" / "new.npy", mmap_mode="r")
        chosen = np.sort(rng.permutation(len(rows))[:count])
        rows = np.asarray(rows[chosen], np.float64)
        rows = rows @ np.linalg.svd(rows, full_matrices=False)[2][:128].T  # the 128 main directions
        labels = np.load(SHARED / "text" / "group.npy")[chosen]
    rows = np.asarray(rows, np.float64)
    rows = (rows - rows.mean(axis=0)) / rows.std()
    wanted = rng.permutation(count)[:queries]
    asked = rows[wanted] + rng.normal(size=(queries, rows.shape[1]))
    return rows, labels, asked, wanted


@threads.single()
def pair(name: str, truth: str, seed: int) -> Pair:
    """Return a pair of models over some vectors, for which the truth is known."""
    rows, labels, asked, wanted = base(name, seed)
    rng = np.random.default_rng(1000 + seed)
    dim = rows.shape[1]
    both = np.concatenate([rows, asked])

    def model(dims: int, noise: float):
        turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:, :dims]
        made = both @ turn + noise * rng.normal(size=(len(both), dims))
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        made = made.astype(np.float32)
        return made[: len(rows)], made[len(rows) :]

    strong = lambda: model(dim, 0.3)  # noqa: E731
    weak = lambda: model(max(6, dim // 5), 0.3)  # noqa: E731
    if truth == "better":
        old, new = weak(), strong()
    elif truth == "worse":
        old, new = strong(), weak()
    elif truth == "equal":
        # The same vectors, rotated: neither model gains anything, nor do both together.
        old = strong()
        turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        new = tuple((part @ turn).astype(np.float32) for part in old)
    elif truth == "dead":
        old, noise = strong(), rng.normal(size=(len(both), dim))
        noise = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)
        new = noise[: len(rows)], noise[len(rows) :]
    else:
        old = strong()
        middle = rng.normal(size=dim)
        near = middle + 1e-4 * rng.normal(size=(len(both), dim))
        near = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
        new = near[: len(rows)], near[len(rows) :]
    return Pair(old[0], new[0], labels, old[1], new[1], wanted)
