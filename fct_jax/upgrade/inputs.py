"""Samples of vectors for fitting and assessing, paired by id.

``storage.named`` opens whatever the user named.
"""

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet, check_paired
from fct_jax.storage.ids import find_rows
from fct_jax.storage.named import array_of as load_array
from fct_jax.storage.named import vectors_of as open_sample

__all__ = [
    "FEWEST",
    "are_unit",
    "load_array",
    "nonzero_rows",
    "open_sample",
    "paired",
    "row_hashes",
    "take",
]

_NO_PAIRS = (
    "; where items cannot be embedded by both models, a map may be learnt without any pairs: "
    "`fct-jax fit OLD NEW --method unpaired`"
)
_LOOKED_AT = 100  # ids, for their spelling
FEWEST = 20  # smallest number of pairs from which anything can be learnt or judged


def paired(old: EmbeddingSet, new: EmbeddingSet) -> tuple[EmbeddingSet, EmbeddingSet]:
    """Return both sets reduced to the ids that they share, in the order of ``new``.

    Raises UserError if fewer than 20 ids are shared, if labels contradict each other, or
    if neither set has ids and the numbers of rows differ, so that nothing says which
    rows belong together.
    """
    if old.numbered and new.numbered and len(old) != len(new):
        raise UserError(
            f"{old.name} has {len(old)} rows and {new.name} {len(new)}, and neither has ids that "
            "say which belong together; give ids (NAME_ids.npy beside a .npy file, "
            "EmbeddingSet.of(vectors, ids)), or the same rows in both"
        )
    if old.ids.dtype.kind != new.ids.dtype.kind and "U" in (old.ids.dtype.kind, new.ids.dtype.kind):
        raise UserError(
            f"{old.name} has ids of {old.ids.dtype} and {new.name} of {new.ids.dtype}; "
            "pairs are matched by id, so both must have ids of one kind"
        )
    theirs, ours = old.ids, new.ids
    if not np.array_equal(old.ids, new.ids):
        rows = find_rows(old.ids, new.ids)
        kept = np.flatnonzero(rows >= 0)
        old, new = take(old, rows[kept]), take(new, kept)
    if len(new) < FEWEST:
        raise UserError(
            f"{old.name} and {new.name} share {len(new)} ids; at least {FEWEST} are needed"
            + (_spelling(theirs, ours) or _NO_PAIRS)
        )
    check_paired(old, new)
    return old, new


def _spelling(ids: np.ndarray, others: np.ndarray) -> str:
    """Return a hint where some ids would be the same in one case; "" where not."""
    if ids.dtype.kind != "U":
        return ""
    some, lower = np.char.lower(ids[:_LOOKED_AT]), np.char.lower(others)
    alike = np.isin(some, lower) & ~np.isin(ids[:_LOOKED_AT], others)
    return "; they differ in upper and lower case: write them alike" if alike.any() else ""


def take(found: EmbeddingSet, rows: np.ndarray) -> EmbeddingSet:
    """Return some rows of a set, in memory."""
    rows = np.asarray(rows)
    labels = None if found.labels is None else np.asarray(found.labels)[rows]
    return EmbeddingSet(
        found.vectors[rows], found.ids[rows], labels, meta=found.meta, name=found.name
    )


def row_hashes(vectors, block: int = 1 << 8) -> np.ndarray:
    """Return (N,) uint64 hashes of the rows as float32; equal rows have equal hashes."""
    factors = np.random.default_rng(2022).integers(1, 2**63, vectors.shape[1], np.uint64) * 2 + 1
    hashes = np.empty(len(vectors), np.uint64)
    for start in range(0, len(vectors), block):
        rows = np.ascontiguousarray(vectors[start : start + block], np.float32) + 0.0
        hashes[start : start + block] = (rows.view(np.uint32) * factors).sum(axis=1)
    return hashes


def nonzero_rows(vectors, block: int = 1 << 16) -> np.ndarray:
    """Return (N,) bool: True for rows that are not all zeros."""
    parts = [
        np.any(np.asarray(vectors[start : start + block]) != 0, axis=1)
        for start in range(0, len(vectors), block)
    ]
    return np.concatenate(parts)


def are_unit(vectors, rows: int = 1000) -> bool:
    """Return whether the first vectors have unit length, within the precision of float16."""
    norms = np.linalg.norm(np.asarray(vectors[:rows], np.float64), axis=1)
    return bool(np.all(np.abs(norms - 1) < 5e-3))
