"""Signs of a degenerate model in its vectors: no variation, low rank, hubs, or copies.

A gallery of such vectors has neighbours like any other, so a comparison with itself looks
perfect; but no map to it, and no advice about it, is worth anything.
"""

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.runtime import threads

SAMPLE = 1000  # vectors that are examined

_SPREAD = 0.01  # share of the root mean square length; the mean cosine is then 0.9999
_RANK = 5.0  # effective dimensions
_OF_REFERENCE = 1 / 8  # share of the effective dimensions that are possible
_CLUSTERED = 0.85  # share of the variance that the clusters of a low rank must explain
_NEIGHBOURS = 10
_FEWEST_FOR_HUBS = 200
_HUBS = 0.01  # share of the items that fills half of all lists of neighbours
_SAME = 1e-3  # share of the root mean square distance below which vectors count as equal
_DISTINCT = 0.05  # share of the items

_FLOOR = 1e-30


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault of vectors.

    kind: "not varied", "low rank", "hubs" or "copies"; count: number of examined vectors;
    text: a sentence with the figures.
    """

    kind: str
    count: int
    text: str


def check_degenerate(vectors, *, metric: str = "cosine", reference=None) -> list[Finding]:
    """Return the signs that vectors are useless for retrieval; [] if there are none.

    Args:
      vectors: (N, D), any number of them; a sample of 1,000 is examined.
      metric: "cosine" or "l2", the metric of their search.
      reference: (M, E) vectors of such items by another model, or None. A low rank is a sign
        only if the reference's rank (without a reference the dimension D) is many times larger.

    There are four signs. *Not varied*: the vectors differ from their mean by less than 1 % of
    their length. *Low rank*: the effective rank, exp of the entropy of the covariance's
    eigenvalues (Roy and Vetterli, EUSIPCO 2007, https://ieeexplore.ieee.org/document/7098875), is
    at most 5 and at most an eighth of the possible rank, and the vectors are not a few tight
    clusters, as those of a classifier with few classes are. *Hubs*:
    1 % of the items fill half of all lists of 10 neighbours (Radovanović et al., JMLR 2010,
    https://jmlr.org/papers/v11/radovanovic10a.html). *Copies*: fewer than one vector in 20 is
    distinct.

    Example::

        >>> check_degenerate(np.ones((100, 8)))[0].kind
        'not varied'
    """
    chosen = _examined(vectors, metric)
    count = len(chosen)
    if count < 2:
        return []
    centred = chosen - chosen.mean(axis=0)
    length = max(float(np.sqrt(np.mean(np.sum(chosen**2, axis=1)))), _FLOOR)
    spread = float(np.sqrt(np.mean(np.sum(centred**2, axis=1)))) / length
    if spread < _SPREAD:
        text = f"the vectors differ from their mean by {spread:.1g} of their length"
        return [Finding("not varied", count, text)]
    with threads.single():
        found = [
            _low_rank(centred, None if reference is None else _examined(reference, metric)),
            *_neighbours(centred),
        ]
    return [Finding(kind, count, text) for kind, text in filter(None, found)]


def check_alive(old, new) -> None:
    """Raise UserError if the vectors of a model show that it is degenerate."""
    for role, found, other in (("old", old, None), ("new", new, old.vectors)):
        metric = found.meta.get("metric", "l2")
        findings = check_degenerate(found.vectors, metric=metric, reference=other)
        # An old model may be poor, which is why it is replaced; only a constant one is useless.
        fatal = [f for f in findings if role == "new" or f.kind == "not varied"]
        if fatal:
            why = "; ".join(f"{finding.kind}: {finding.text}" for finding in fatal)
            raise UserError(f"the {role} model is degenerate, by {fatal[0].count} vectors: {why}")


def effective_rank(centred: np.ndarray) -> float:
    """Return exp of the entropy of the eigenvalues of the covariance of centred rows (N, D)."""
    rows, columns = centred.shape
    gram = centred.T @ centred if columns <= rows else centred @ centred.T
    values = np.maximum(np.linalg.eigvalsh(gram), 0)
    shares = values / max(values.sum(), _FLOOR)
    shares = shares[shares > _FLOOR]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _examined(vectors, metric: str) -> np.ndarray:
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), SAMPLE)).astype(int))
    chosen = np.asarray(vectors[rows], np.float64)
    return unit_rows(chosen) if metric == "cosine" else chosen


def _low_rank(centred: np.ndarray, reference: np.ndarray | None) -> tuple[str, str] | None:
    rank = effective_rank(centred)
    room = min(len(centred) - 1, centred.shape[1])
    of = f"{room} possible ones"
    if reference is not None:
        room = effective_rank(reference - reference.mean(axis=0))
        of = f"{room:.1f} of the other model"
    if rank > _RANK or rank > _OF_REFERENCE * room:
        return None
    explained = _explained(centred, int(np.ceil(rank)) + 1)
    if explained >= _CLUSTERED:
        return None
    return "low rank", f"the vectors have {rank:.1f} effective dimensions, against {of}"


def _explained(centred: np.ndarray, clusters: int) -> float:
    """Return the share of the variance that this number of k-means clusters explains."""
    centres = centred[[int(np.argmax(np.sum(centred**2, axis=1)))]]
    for _ in range(clusters - 1):  # the farthest from all so far
        nearest = _squares(centred, centres).min(axis=1)
        centres = np.vstack([centres, centred[np.argmax(nearest)]])
    for _ in range(20):
        own = _squares(centred, centres).argmin(axis=1)
        means = [centred[own == c].mean(axis=0) for c in np.unique(own)]
        centres = np.vstack([means, centres[np.setdiff1d(np.arange(clusters), own)]])
    left = _squares(centred, centres).min(axis=1).sum()
    return 1 - float(left) / max(float(np.sum(centred**2)), _FLOOR)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return squared distances (len(a), len(b))."""
    squares = np.sum(a**2, axis=1)[:, None] - 2 * a @ b.T + np.sum(b**2, axis=1)
    return np.maximum(squares, 0)


def _neighbours(centred: np.ndarray):
    """Yield findings about hubs and copies."""
    count = len(centred)
    squares = _squares(centred, centred)
    typical = squares.sum() / max(count * (count - 1), 1)
    # Each item is a copy of the first one that it practically equals.
    first = np.argmax(squares <= _SAME**2 * typical, axis=1)
    distinct = len(np.unique(first))
    if distinct < max(2, _DISTINCT * count):
        yield "copies", f"only {distinct} of {count} vectors are distinct"
        return
    if count < _FEWEST_FOR_HUBS:
        return
    np.fill_diagonal(squares, np.inf)
    nearest = np.argpartition(squares, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    lists = np.sort(np.bincount(nearest.ravel(), minlength=count))[::-1]
    hubs = int(np.searchsorted(np.cumsum(lists), lists.sum() / 2)) + 1
    if hubs <= _HUBS * count:
        yield "hubs", f"{hubs} of {count} items fill half of all lists of {_NEIGHBOURS} neighbours"
