"""Checks of vectors and labels, and distances with exact ties, block by block."""

import numpy as np

from fct_jax.errors import UserError, unknown

METRICS = ("l2", "cosine")
NORM_FLOOR = 1e-12

# Up to this many query–gallery pairs, products are in float64, which takes about a second
# and makes every rank exact; larger sets use float32.
EXACT_PAIRS = 2**27


def check_metric(metric: str) -> None:
    """Raise UserError unless ``metric`` is one of METRICS."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)


def as_vectors(name: str, vectors) -> np.ndarray:
    """Return ``vectors`` as a finite, non-empty (N, D) array of float32 (float64 stays float64).

    Raises UserError, naming the array, for another shape, no rows, no columns, values that
    are not numbers, NaN or infinity.
    """
    array = np.asarray(vectors)
    if array.ndim != 2:
        raise UserError(f"{name} must have shape (N, D), not {array.shape}")
    if 0 in array.shape:
        raise UserError(f"{name} is empty: shape {array.shape}; at least one vector is needed")
    if array.dtype not in (np.float32, np.float64):
        if array.dtype.kind in "cOSUmM":
            raise UserError(f"{name} must hold real numbers, not {array.dtype}")
        array = array.astype(np.float32)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{name} holds NaN or infinity in {np.count_nonzero(~finite)} of {len(array)} rows, "
            f"first in row {int(np.argmin(finite))}"
        )
    return array


def as_labels(name: str, labels, count: int) -> np.ndarray:
    """Return ``labels`` as an array (count,). Raises UserError for another length or bad values."""
    array = np.asarray(labels)
    if array.shape != (count,):
        raise UserError(f"{name} must have shape ({count},), one per vector, not {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{name} hold NaN or infinity")
    if array.dtype.kind not in "biufSU":
        raise UserError(f"{name} must be integers or strings, not {array.dtype}")
    return array


def check_same_width(a_name: str, a: np.ndarray, b_name: str, b: np.ndarray) -> None:
    """Raise UserError unless both arrays (N, D) have the same D."""
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"{a_name} has {a.shape[1]} dimensions but {b_name} has {b.shape[1]}; "
            "both must come from the same embedding space"
        )


def check_same_length(a_name: str, a: np.ndarray, b_name: str, b: np.ndarray) -> None:
    """Raise UserError unless both arrays have the same number of rows."""
    if len(a) != len(b):
        raise UserError(f"{a_name} has {len(a)} rows but {b_name} has {len(b)}; they must agree")


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Return rows over their L2 norm (floored at 1e-12) in float64; a zero row stays zero.

    The published evaluation code of FCT divides by the L1 norm; this is the true cosine.

    >>> unit_rows([[3.0, 4.0], [0.0, 0.0]]).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    rows = np.asarray(vectors, np.float64)
    # Rows are divided by their largest value first, so that squares neither overflow nor vanish.
    peak = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), NORM_FLOOR)
    norm = peak * np.linalg.norm(rows / peak, axis=-1, keepdims=True)
    return rows / np.maximum(norm, NORM_FLOOR)


def distances(a, b, metric: str = "l2") -> np.ndarray:
    """Return distances between rows along the last axis, in float64; leading axes broadcast.

    ``l2``: Euclidean norm of the difference, in the unit of the vectors. ``cosine``:
    1 − cosine, from 0 to 2; a zero vector is at 1 from everything.
    For one row each: ``distances(a, b)``; all pairs of small sets: ``distances(a[:, None], b)``.

    >>> distances([[3.0, 4.0]], [[0.0, 0.0]]).tolist()
    [5.0]
    """
    check_metric(metric)
    if metric == "cosine":
        return 1.0 - np.sum(unit_rows(a) * unit_rows(b), axis=-1)
    return np.linalg.norm(np.asarray(a, np.float64) - np.asarray(b, np.float64), axis=-1)


class Keys:
    """Sort keys of query × gallery pairs, a block of queries at a time: smaller is nearer.

    Keys order a query's gallery as distances do, and are cheaper: ``|g|²/2 − q·g`` for L2,
    ``−q·g`` for ``dot`` (rows prepared by the caller; cosine when they have unit length).
    Equal gallery vectors have equal keys in all places: the keys are copied from the
    first of them, because a matrix product may round two equal columns differently.

    A large common part of all vectors (of embeddings after a ReLU, say) costs float32 products
    digits, so large sets are taken relative to a centre c: with q' = q − c and g' = g − c the keys
    are ``|g'|²/2 − q'·g'`` and ``−c·g' − q'·g'``, which differ from the above by a number per
    query.
    """

    def __init__(self, query: np.ndarray, gallery: np.ndarray, kind: str):
        """Take query (Q, D) and gallery (G, D) rows; ``kind`` is "l2" or "dot"."""
        self.shape = (len(query), len(gallery))
        exact = len(query) * len(gallery) <= EXACT_PAIRS
        self.dtype = np.dtype(np.float64 if exact else np.float32)
        self.rounded = exact and kind == "dot"
        if exact:
            query, gallery = query.astype(np.float64), gallery.astype(np.float64)
        if kind == "l2":
            query, gallery = _scaled(query, gallery)
        centre = np.zeros(gallery.shape[1], gallery.dtype) if exact else _centre(gallery)
        query, gallery = query - centre, gallery - centre
        if kind == "l2":
            offset = np.einsum("nd,nd->n", gallery, gallery, dtype=np.float64) / 2
        else:
            offset = -np.einsum("nd,d->n", gallery, centre, dtype=np.float64)
        self.offset = offset.astype(self.dtype)
        self.query = np.ascontiguousarray(query, self.dtype)
        gallery = np.ascontiguousarray(gallery, self.dtype)
        self.columns = gallery.T
        self.copies, self.originals = _duplicates(gallery)

    def fill(self, start: int, stop: int, out: np.ndarray) -> np.ndarray:
        """Write the keys of queries start … stop−1 into the first rows of ``out``; return these."""
        block = out[: stop - start]
        np.matmul(self.query[start:stop], self.columns, out=block)
        np.subtract(self.offset, block, out=block)
        if self.rounded:
            # Parallel vectors of different length differ only by rounding, which is a tie.
            np.round(block, 12, out=block)
        if len(self.copies):
            block[:, self.copies] = block[:, self.originals]
        return block


def _scaled(query: np.ndarray, gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale both by the power of two that makes their largest number about 1; L2 ranks stay."""
    exponent = -int(np.frexp(max(np.abs(query).max(), np.abs(gallery).max()))[1])
    return np.ldexp(query, exponent), np.ldexp(gallery, exponent)


def _centre(rows: np.ndarray) -> np.ndarray:
    """Return the mean row, rounded to a power-of-two grid somewhat finer than the data's spread.

    Vectors on such a grid, integers for example, thus keep exact differences and ties.
    """
    mean = rows.mean(axis=0, dtype=np.float64)
    spread = np.abs(rows - mean).max()
    if spread == 0:
        return rows[0]
    grid = np.exp2(np.floor(np.log2(spread)) - 2)
    return (np.round(mean / grid) * grid).astype(rows.dtype)


def _duplicates(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that repeat an earlier row, and the first row equal to each."""
    rows = rows + 0  # −0 becomes 0
    # Equal rows have equal sums of their bits; only rows that share a sum are compared in full.
    sums = rows.view(np.dtype(f"u{rows.dtype.itemsize}")).sum(axis=1, dtype=np.uint64)
    _, group, sizes = np.unique(sums, return_inverse=True, return_counts=True)
    suspects = np.flatnonzero(sizes[group] > 1)
    whole_rows = np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))
    as_bytes = rows[suspects].view(whole_rows).ravel()
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    original = suspects[first[inverse]]
    repeats = original != suspects
    return suspects[repeats], original[repeats]
