"""Samples of vectors for fitting and assessing: from arrays, EmbeddingSets, files; paired by id."""

from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet, check_paired
from fct_jax.storage.ids import find_rows
from fct_jax.upgrade.galleries.base import open_gallery

FEWEST = 20  # pairs without which nothing can be learnt or judged


def open_sample(what, role: str) -> EmbeddingSet:
    """The vectors that a user named, as an EmbeddingSet.

    Args:
      what: an EmbeddingSet, an array (N, D), or the path of an EmbeddingSet, of a ``.npy`` file
        (ids from ``NAME_ids.npy`` beside it, else row numbers), of a Parquet folder or a
        Faiss ``IndexIDMap2`` file, which are read into memory.
      role: "old", "new", … for messages.

    Raises:
      UserError: nothing of the kind is there.
    """
    if isinstance(what, EmbeddingSet):
        return what
    if isinstance(what, np.ndarray):
        return EmbeddingSet.of(what)
    if not what:
        raise UserError(f"config.{role} is empty; give an EmbeddingSet, a .npy or Parquet file")
    path = Path(what)
    if path.suffix == ".npy" and path.is_file():
        vectors, ids = _load(path), _ids_beside(path)
        ids = np.arange(len(vectors) if vectors.ndim else 0) if ids is None else ids
        found = EmbeddingSet(vectors, ids, name=str(path))
        found.check()
        return found
    if (path / "vectors.npy").is_file():
        return EmbeddingSet.read(path)
    gallery = open_gallery(path)
    vectors = gallery.read(0, len(gallery))
    return EmbeddingSet(vectors, gallery.ids, meta=gallery.meta, name=str(path))


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (ValueError, OSError, EOFError) as error:
        reason = "no .npy array of numbers or text" if "pickle" in str(error) else error
        raise UserError(f"{path} cannot be read: {reason}") from None


def _ids_beside(path: Path) -> np.ndarray | None:
    ids = path.with_name(f"{path.stem}_ids.npy")
    return np.asarray(_load(ids)) if ids.is_file() else None


def load_array(what, role: str) -> np.ndarray | None:
    """An array, the ``.npy`` file of one, or None for None and ""."""
    if what is None or (isinstance(what, str) and not what):
        return None
    if isinstance(what, str | Path):
        return np.asarray(_load(Path(what)))
    array = np.asarray(what)
    if array.dtype == object:
        raise UserError(f"{role} must be an array of numbers or text, not {type(what).__name__}")
    return array


def paired(old: EmbeddingSet, new: EmbeddingSet) -> tuple[EmbeddingSet, EmbeddingSet]:
    """Both sets cut down to the ids that they share, in the order of ``new``.

    Raises UserError where fewer than 20 ids are shared, or labels contradict each other.
    """
    if old.ids.dtype.kind != new.ids.dtype.kind and "U" in (old.ids.dtype.kind, new.ids.dtype.kind):
        raise UserError(
            f"{old.name} has ids of {old.ids.dtype} and {new.name} of {new.ids.dtype}; "
            "pairs are found by id"
        )
    if not np.array_equal(old.ids, new.ids):
        rows = find_rows(old.ids, new.ids)
        kept = np.flatnonzero(rows >= 0)
        old, new = take(old, rows[kept]), take(new, kept)
    if len(new) < FEWEST:
        raise UserError(
            f"{old.name} and {new.name} share {len(new)} ids; at least {FEWEST} are needed"
        )
    check_paired(old, new)
    return old, new


def take(found: EmbeddingSet, rows: np.ndarray) -> EmbeddingSet:
    """Some rows of a set, in memory."""
    rows = np.asarray(rows)
    labels = None if found.labels is None else np.asarray(found.labels)[rows]
    return EmbeddingSet(
        found.vectors[rows], found.ids[rows], labels, meta=found.meta, name=found.name
    )


def row_hashes(vectors, block: int = 1 << 16) -> np.ndarray:
    """(N,) uint64: a number for the content of each row as float32; equal rows, equal numbers."""
    factors = np.random.default_rng(2022).integers(1, 2**63, vectors.shape[1], np.uint64) * 2 + 1
    hashes = np.empty(len(vectors), np.uint64)
    for start in range(0, len(vectors), block):
        rows = np.ascontiguousarray(vectors[start : start + block], np.float32) + 0.0
        hashes[start : start + block] = (rows.view(np.uint32) * factors).sum(axis=1)
    return hashes


def nonzero_rows(vectors, block: int = 1 << 16) -> np.ndarray:
    """(N,) bool: which rows are not all zeros."""
    parts = [
        np.any(np.asarray(vectors[start : start + block]) != 0, axis=1)
        for start in range(0, len(vectors), block)
    ]
    return np.concatenate(parts)


def are_unit(vectors, rows: int = 1000) -> bool:
    """Whether vectors have unit length, within what float16 leaves of it, judged by the first."""
    norms = np.linalg.norm(np.asarray(vectors[:rows], np.float64), axis=1)
    return bool(np.all(np.abs(norms - 1) < 5e-3))
