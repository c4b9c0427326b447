"""mini-vec2vec: an orthogonal map between two spaces without any known pair.

It needs two samples of the *same kind of content*. The samples cannot prove that the map is
right: several seeds have to agree, and 50 to 100 pairs are needed to check the result.

Source: "mini-vec2vec: Scaling Universal Geometry Alignment with Linear Transformations", 2025,
https://arxiv.org/abs/2510.02348, and its public notebook.
"""

import dataclasses
import itertools

import faiss
import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import as_vectors, unit_rows
from fct_jax.upgrade.maps.common_space import nearest_orthogonal
from fct_jax.upgrade.maps.kmeans import kmeans

# Smallest mean cosine at which two seeds' maps count as the same. Our choice: on the dictionary's
# text (256 → 384) the seeds agreed by 0.1 with 1,000 unpaired vectors of each side, by 0.3 to 0.4
# with 4,000, and by 0.72 with 9,800; of 100 to 500 known pairs the map then found the right one for
# 2 %, 11 to 63 % and 88 %.
AGREED = 0.6
_KEPT = 0.5  # weight of the current map in its average with a refined one
_JUDGED = 2000  # rows on which seeds are compared


@dataclasses.dataclass(frozen=True)
class Settings:
    """The published numbers; smaller ones for tests and small samples.

    Attributes:
      repetitions: number of searches for anchors.
      rows: rows drawn for each search.
      clusters: anchors found by each search.
      restarts: restarts of each matching of two kernels.
      matched: number of nearest B-rows whose mean serves as the partner of an A-row.
      refinements: steps of the first refinement.
      refinement_rows: rows drawn for each of these steps.
      centres: k-means cells of the second refinement.
    """

    repetitions: int = 30
    rows: int = 10_000
    clusters: int = 20
    restarts: int = 30
    matched: int = 50
    refinements: int = 100
    refinement_rows: int = 1000
    centres: int = 500


@dataclasses.dataclass(frozen=True)
class UnpairedMap:
    """An orthogonal map between centred, unit-length vectors, with measures of its reliability.

    Attributes:
      weight: (do, dn) float64, the polar factor of the smoothed map of the best seed.
      mean_old, mean_new: (do,), (dn,), means of the two samples.
      agreement: (S, S) mean cosines between the results of any two seeds.
      self_consistency: (S,) for each seed, the mean cosine of its mapped A-centres with the
        B-centres that k-means finds when started from them. A wrong map reaches high values, too.
    """

    weight: np.ndarray
    mean_old: np.ndarray
    mean_new: np.ndarray
    agreement: np.ndarray
    self_consistency: np.ndarray

    def __call__(self, old) -> np.ndarray:
        """Map old vectors (N, do) to unit vectors (N, dn), comparable with `prepared` new ones."""
        return unit_rows(unit_rows(old - self.mean_old) @ self.weight)

    def prepared(self, new) -> np.ndarray:
        """Centre new vectors (N, dn) and scale them to unit length."""
        return unit_rows(new - self.mean_new)

    @property
    def lowest_agreement(self) -> float:
        """Return the mean cosine of the two seeds that differ most; NaN for one seed."""
        off = self.agreement[~np.eye(len(self.agreement), dtype=bool)]
        return float(off.min()) if off.size else float("nan")

    @property
    def agreed(self) -> bool:
        """Return whether any two seeds found about the same map; False for one seed."""
        return self.lowest_agreement >= AGREED

    @property
    def text(self) -> str:
        """Return a sentence for the user: whether the seeds agree, and what remains unknown."""
        seeds, lowest = len(self.agreement), self.lowest_agreement
        if not self.agreed:
            return (
                f"the {seeds} seeds do not agree (lowest mean cosine {lowest:.2f}, "
                f"{AGREED} needed): do not use this map"
            )
        return (
            f"the {seeds} seeds agree (lowest mean cosine {lowest:.2f}), but this cannot be "
            "checked without 50 to 100 pairs"
        )


def fit_unpaired(
    old: np.ndarray,
    new: np.ndarray,
    *,
    seeds: int = 5,
    settings: Settings = Settings(),
    seed: int = 0,
) -> UnpairedMap:
    """Fit the map from two unpaired samples of the same kind of content.

    Args:
      old, new: (N, do), (M, dn) vectors; their rows do not correspond to each other. The smaller
        dimension is padded with zeros (our addition; the publication has equal dimensions only).
      seeds: number of independent maps. The one that agrees best with the others is returned.
      settings: see `Settings`.
      seed: seed of all of them.

    Raises UserError for NaN or infinity, or for samples with fewer rows than the clusters need.

    Example: ``found = fit_unpaired(old, new)``, then read ``found.text`` before using it.
    """
    old, new = as_vectors("old", old), as_vectors("new", new)
    fewest = 2 * max(settings.clusters, settings.matched)
    if min(len(old), len(new)) < fewest:
        raise UserError(
            f"a map without pairs needs at least {fewest} vectors on each side; there are "
            f"{len(old)} old and {len(new)} new vectors"
        )
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, not {seeds}")
    mean_old, mean_new = (a.mean(axis=0, dtype=np.float64) for a in (old, new))
    dim = max(old.shape[1], new.shape[1])
    a, b = _padded(unit_rows(old - mean_old), dim), _padded(unit_rows(new - mean_new), dim)
    found = [_fit_once(a, b, settings, np.random.default_rng((seed, i))) for i in range(seeds)]
    judged = a[:_JUDGED].astype(np.float64)
    results = [unit_rows(judged @ weight) for weight, _ in found]
    agreement = np.eye(seeds)
    for i, j in itertools.combinations(range(seeds), 2):
        agreement[i, j] = agreement[j, i] = np.sum(results[i] * results[j]) / len(judged)
    weight = found[int(agreement.sum(axis=1).argmax())][0][: old.shape[1], : new.shape[1]]
    consistency = np.array([value for _, value in found])
    return UnpairedMap(nearest_orthogonal(weight), mean_old, mean_new, agreement, consistency)


def share_found(found: UnpairedMap, old: np.ndarray, new: np.ndarray) -> float:
    """Return the share of known pairs whose new vector is the nearest one to the mapped old vector.

    old (P, do), new (P, dn): 50 to 100 pairs that the map was not fitted on. Chance gives 1 / P.
    """
    scores = found(np.asarray(old)) @ found.prepared(np.asarray(new)).T
    return float(np.mean(scores.argmax(axis=1) == np.arange(len(scores))))


def centred_kernel(centres: np.ndarray) -> np.ndarray:
    """Return the double-centred Gram matrix (c, c) of centres (c, D): ``H C Cᵀ H``."""
    centred = np.asarray(centres, np.float64)
    centred = centred - centred.mean(axis=0)
    return centred @ centred.T


def match_kernels(
    first: np.ndarray,
    second: np.ndarray,
    *,
    restarts: int = 30,
    seed: int | np.random.Generator = 0,
) -> tuple[np.ndarray, float]:
    """Match the items of two kernels: quadratic assignment by 2-opt from random starts.

    Args:
      first, second: (c, c) symmetric matrices.
      restarts: number of random permutations, each improved until no exchange of two items helps.
      seed: an integer or a generator.

    Returns the permutation p (c,) with the largest ``Σ first[i, j] · second[p_i, p_j]`` found, and
    this sum. Item i of the first belongs to item p_i of the second.
    """
    rng = np.random.default_rng(seed)
    best, value = None, -np.inf
    for _ in range(restarts):
        p = _two_opt(first, second, rng.permutation(len(first)))
        found = float(np.sum(first * second[np.ix_(p, p)]))
        if best is None or found > value:
            best, value = p, found
    return best, value


def _two_opt(first, second, p):
    """Repeat the best exchange of two items until none improves the sum."""
    own = np.diagonal(first)
    tolerance = 1e-12 * np.abs(first).max() * np.abs(second).max() * len(first)
    while True:
        turned = second[np.ix_(p, p)]
        theirs, product = np.diagonal(turned), first @ turned
        kept = np.diagonal(product)
        gain = product + product.T - kept[:, None] - kept[None, :]
        # The two exchanged items keep their relation to each other.
        gain -= (own[:, None] - first) * (turned - theirs[:, None])
        gain -= (first - own[None, :]) * (theirs[None, :] - turned)
        gain = 2 * gain + (own[:, None] - own[None, :]) * (theirs[None, :] - theirs[:, None])
        r, s = np.unravel_index(int(np.argmax(gain)), gain.shape)
        if gain[r, s] <= tolerance:
            return p
        p = p.copy()
        p[[r, s]] = p[[s, r]]


def relative_partners(
    a: np.ndarray, b: np.ndarray, anchors_a: np.ndarray, anchors_b: np.ndarray, matched: int
) -> np.ndarray:
    """Return, for each A-row, the mean of the B-rows with the most similar profiles, (N, D).

    Profiles (see `profiles`) are compared by cosine, and the ``matched`` best B-rows of (M, D) are
    averaged.
    """
    asked, searched = profiles(a, anchors_a), profiles(b, anchors_b)
    return _mean_of_nearest(asked.astype(np.float32), searched.astype(np.float32), b, matched)


def profiles(rows: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Return each row's cosines with the anchors of its side, at unit length, (N, D) → (N, R)."""
    return unit_rows(unit_rows(rows) @ unit_rows(anchors).T)


def _mean_of_nearest(asked, searched, values, count: int):
    """Return mean values (N, D) of the ``count`` searched rows with the largest inner products."""
    count = min(count, len(searched))
    _, rows = faiss.knn(asked, searched, count, metric=faiss.METRIC_INNER_PRODUCT)
    total = np.zeros((len(asked), values.shape[1]))
    for column in rows.T:
        total += values[column]
    return total / count


def smoothed(weight: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """Return the average of both maps, which is not orthogonal: singular values fall below 1."""
    return _KEPT * weight + (1 - _KEPT) * refined


def _fit_once(a, b, s: Settings, rng) -> tuple[np.ndarray, float]:
    anchors = [_matched_centres(a, b, s, rng) for _ in range(s.repetitions)]
    anchors_a, anchors_b = (np.concatenate(side) for side in zip(*anchors, strict=True))
    rows = _sample(a, s.rows, rng)
    weight = nearest_orthogonal(
        rows.T @ relative_partners(rows, b, anchors_a, anchors_b, s.matched)
    )
    for _ in range(s.refinements):
        rows = _sample(a, s.refinement_rows, rng)
        asked = np.ascontiguousarray(unit_rows(rows @ weight), np.float32)
        partners = _mean_of_nearest(asked, b, b, s.matched)
        weight = smoothed(weight, nearest_orthogonal(rows.T @ partners))
    count = max(1, min(s.centres, len(a) // 4, len(b) // 4))
    centres_a = kmeans(a, count, seed=int(rng.integers(2**31))).centres
    centres_b = kmeans(b, len(centres_a), start=centres_a @ weight).centres
    weight = smoothed(weight, nearest_orthogonal(centres_a.T @ centres_b))
    consistency = np.mean(np.sum(unit_rows(centres_a @ weight) * unit_rows(centres_b), axis=1))
    return weight, float(consistency)


def _matched_centres(a, b, s: Settings, rng):
    """Return k-means centres of a sample of each side, with B's in the order of A's."""
    sides = [
        kmeans(_sample(side, s.rows, rng), s.clusters, seed=int(rng.integers(2**31))).centres
        for side in (a, b)
    ]
    count = min(map(len, sides))  # fewer where rows repeat
    first, second = (side[:count] for side in sides)
    order, _ = match_kernels(
        centred_kernel(first), centred_kernel(second), restarts=s.restarts, seed=rng
    )
    return first, second[order]


def _sample(rows, count: int, rng):
    return rows if len(rows) <= count else rows[rng.choice(len(rows), count, replace=False)]


def _padded(rows, dim: int):
    """Pad rows with zeros to ``dim`` columns; return contiguous float32 rows for Faiss."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, dim - rows.shape[1]))), np.float32)
