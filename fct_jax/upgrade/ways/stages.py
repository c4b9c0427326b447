"""Joining and re-ranking the candidates of a cascade, by NumPy alone."""

import numpy as np


def union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Interleave two lists of candidates, each row once: (Q, K), (Q, L) → (Q, K + L).

    Candidate i of the first list comes before candidate i of the second; −1 fills the end.
    """
    place = np.concatenate([2 * np.arange(first.shape[1]), 2 * np.arange(second.shape[1]) + 1])
    return once(np.concatenate([first, second], axis=1)[:, place.argsort()])


def once(rows: np.ndarray) -> np.ndarray:
    """Keep the first of equal rows (Q, K) of each query and move all −1 to the end."""
    by_row = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, by_row, 1)
    again = np.zeros(rows.shape, bool)
    np.put_along_axis(again, by_row[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    kept = ~again & (rows >= 0)
    taken = np.take_along_axis(rows, np.argsort(~kept, axis=1, kind="stable"), 1)
    return np.where(np.arange(rows.shape[1]) < kept.sum(axis=1)[:, None], taken, -1)


def second_stage(scores, rows, anew, migrated, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Re-rank the first candidates, re-embedded ones by their new score.

    scores, rows: (Q, n) results of the first stage. anew: (Q, depth) new scores of the first of
    them, used for migrated (N,) rows. Results beyond the depth stay behind all
    candidates; higher scores among them are lowered to the last candidate's.
    """
    depth = anew.shape[1]
    known = rows[:, :depth] >= 0
    first = np.where(known & migrated[rows[:, :depth]], anew, scores[:, :depth])
    order = np.argsort(-np.where(known, first, -np.inf), axis=1, kind="stable")
    first = np.take_along_axis(np.where(known, first, -np.inf), order, 1)
    rest = np.minimum.accumulate(np.minimum(scores[:, depth:], first[:, -1:]), axis=1)
    found = np.hstack([np.take_along_axis(rows[:, :depth], order, 1), rows[:, depth:]])
    return np.hstack([first, rest])[:, :k].astype(np.float32), found[:, :k]
