"""Progressive materialisation: a cascade that makes a few of the new vectors it needs per query.

A query embeds at most ``budget`` of its candidates while it waits. The others keep their
calibrated old score in the ranking and are queued. New vectors are kept. `replay` simulates a
stream of queries to measure cost and quality before anything is embedded.

The scheme is that of the public project arnsri33/embedflow.
"""

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.ways.cascade import reranked

_BLOCK = 4096  # turns that are ranked together


@dataclasses.dataclass(frozen=True)
class Replay:
    """The results and costs of each of S queries of a stream.

    Attributes:
      scores, rows: (S, k) the results served, −inf and −1 if there are fewer candidates.
      embedded: (S,) number of vectors made while the query waited, including failures.
      queued: (S,) number of candidates that it added to the queue.
      old_scored: (S,) number of candidates that were ranked by their old score.
      present: (S,) number of items with a new vector after the query and the queue's work after it.
      failed: number of items whose embedding failed; they keep their old score permanently.
      size: number of items in the gallery.
    """

    scores: np.ndarray
    rows: np.ndarray
    embedded: np.ndarray
    queued: np.ndarray
    old_scored: np.ndarray
    present: np.ndarray
    failed: int
    size: int

    @property
    def embeddings(self) -> dict[str, float]:
        """Return mean, median and 99th percentile of the vectors made per waiting query."""
        return {
            "mean": float(self.embedded.mean()),
            "median": float(np.median(self.embedded)),
            "p99": float(np.percentile(self.embedded, 99)),
        }

    def share_after(self, queries: int) -> float:
        """Return the share of the gallery that has a new vector after this number of queries.

        Raises UserError if the stream is shorter.
        """
        if not 1 <= queries <= len(self.present):
            raise UserError(
                f"the stream has {len(self.present)} queries; the number must be between 1 and "
                f"that, not {queries}"
            )
        return float(self.present[queries - 1] / self.size)

    @property
    def shares(self) -> dict[int, float]:
        """Return the share after 10², 10³, … queries and at the end of the stream."""
        marks = [10**e for e in range(2, 12) if 10**e < len(self.present)]
        return {mark: self.share_after(mark) for mark in [*marks, len(self.present)]}


def replay(
    stream: np.ndarray,
    candidates: np.ndarray,
    old_scores: np.ndarray,
    new_scores: np.ndarray,
    *,
    size: int,
    budget: int | None,
    k: int,
    background: int | None = 0,
    present: np.ndarray | None = None,
    failing: np.ndarray | None = None,
) -> Replay:
    """Replay a stream of queries against a gallery that is re-embedded on demand.

    Args:
      stream: (S,) numbers of queries, in the order of time; a query may repeat.
      candidates: (Q, K) gallery rows of each query, best first, −1 for none.
      old_scores, new_scores: (Q, K) scores of the candidates without and with their new vector,
        calibrated to one scale by `Calibration.affine`.
      size: N, number of items in the gallery.
      budget: largest number of vectors made while a query waits, for its first candidates;
        None: no limit.
      k: number of results served; 0 ranks nothing, if only the work is of interest.
      background: queued items that are embedded between two queries, oldest first; None: all.
      present: (N,) bool, items that have a new vector at the start; None: none has.
      failing: (N,) bool, items whose embedding fails. Each is tried once and counts as made; the
        query uses its old score.

    Raises UserError for a negative budget, an empty stream, or queries and rows out of range.

    Example: ``replay(stream, rows, keep, new, size=len(old), budget=5, k=10).embeddings["p99"]``.
    """
    stream = _checked(stream, candidates, size, budget, background)
    from fct_jax.upgrade.ways.streaming import course  # late: Numba takes a second

    has = np.zeros(size, bool) if present is None else np.array(present, bool)
    fails = np.zeros(size, bool) if failing is None else np.asarray(failing, bool)
    candidates = np.ascontiguousarray(candidates, np.int64)
    ready = np.zeros((len(stream), candidates.shape[1]), bool)
    embedded, queued, grown = (np.zeros(len(stream), np.int64) for _ in range(3))
    limits = (-1 if limit is None else limit for limit in (budget, background))
    failed = course(stream, candidates, *limits, has, fails, ready, embedded, queued, grown)
    known = (candidates >= 0).sum(axis=1)[stream]
    scores = np.full((len(stream), k), -np.inf, np.float32)
    rows = np.full((len(stream), k), -1, np.int64)
    for start in range(0, len(stream) if k else 0, _BLOCK):
        turns = slice(start, start + _BLOCK)
        asked = stream[turns]
        found = np.where(ready[turns], new_scores[asked], old_scores[asked])
        found = np.where(candidates[asked] >= 0, found, -np.inf)
        scores[turns], rows[turns] = reranked(candidates[asked], found, k)
    return Replay(
        scores, rows, embedded, queued, known - ready.sum(axis=1), grown, int(failed), size
    )


def popular_stream(
    queries: int, length: int, *, exponent: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Draw a stream (length,) of queries whose popularity follows Zipf's law.

    The query of popularity rank r has a probability proportional to ``r ** -exponent``; the ranks
    are assigned at random. With an exponent of 0 all queries are equally likely.

    Raises UserError for no queries, a length below 1 or a negative exponent.
    """
    if queries < 1 or length < 1 or exponent < 0:
        raise UserError(
            "a stream needs at least 1 query, a length of at least 1 and an exponent of at least "
            f"0, not {queries}, {length} and {exponent}"
        )
    rng = np.random.default_rng(seed)
    chance = np.arange(1, queries + 1, dtype=np.float64) ** -exponent
    return rng.permutation(queries)[rng.choice(queries, length, p=chance / chance.sum())]


def _checked(stream, candidates, size, budget, background) -> np.ndarray:
    stream = np.asarray(stream)
    for name, value in (("budget", budget), ("background", background)):
        if value is not None and value < 0:
            raise UserError(f"{name} must be at least 0, or None for no limit, not {value}")
    if stream.ndim != 1 or not len(stream):
        raise UserError("the stream of queries is empty")
    if stream.min() < 0 or stream.max() >= len(candidates):
        raise UserError(
            f"the stream names queries {stream.min()} to {stream.max()}; they must be between 0 "
            f"and {len(candidates) - 1}"
        )
    if candidates.size and candidates.max() >= size:
        raise UserError(f"candidate {candidates.max()} is beyond the gallery of {size} items")
    return stream
