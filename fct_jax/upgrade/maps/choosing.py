"""Choice of a map by its retrieval quality on held-out pairs."""

from collections.abc import Mapping

import numpy as np

from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.maps.map import Map

_NEIGHBOURS = 10
_RESAMPLES = 1000
_TOGETHER = 50  # resamples that are drawn at once
_LEVEL = 97.5  # percentile: the upper end of a 95 % interval

Quality = dict[str, np.ndarray]  # name of a measure -> (Q,) values, one per held-out pair


def held_out_quality(
    found: Map, old: EmbeddingSet, new: EmbeddingSet, labels, metric: str
) -> Quality:
    """Return the retrieval quality of new vectors in the translated gallery of the same items.

    "agreement@10" is the share of an item's 10 nearest other items in the new space that are also
    among its 10 nearest in the translated gallery. "own" is 1 if an item's own translation is the
    nearest of all. With labels there are also "map" (average precision, NaN for an item whose label
    no other item has) and "cmc@1", both leave-one-out.
    """
    from fct_jax.evaluate.search import knn  # late: Faiss is slow to import

    target = np.asarray(new.vectors, np.float32)
    mapped, _ = found.transform(old.vectors)
    k = min(_NEIGHBOURS, len(target) - 1)
    _, wanted = knn(target, target, k, metric=metric, exclude_self=True)
    _, got = knn(target, mapped, k, metric=metric, exclude_self=True)
    both = (wanted[:, :, None] == got[:, None, :]).any(axis=2)
    _, nearest = knn(target, mapped, 1, metric=metric)
    quality = {
        "agreement@10": both.mean(axis=1),
        "own": (nearest[:, 0] == np.arange(len(target))).astype(float),
    }
    if labels is not None:
        from fct_jax.evaluate.metrics import per_query_results

        judged = per_query_results(target, mapped, labels, metric=metric, ks=(1,))
        quality |= {"map": judged.ap, "cmc@1": judged.hit[1].astype(float)}
    return quality


def means_of(quality: Quality) -> dict[str, float]:
    """Return the mean of each measure over the held-out pairs for which it is defined."""
    known = {name: values[~np.isnan(values)] for name, values in quality.items()}
    return {name: float(v.mean()) if len(v) else float("nan") for name, v in known.items()}


def choose(qualities: Mapping[str, Quality], seed: int = 0) -> tuple[str, str]:
    """Return the name of the best map, and the measure that decided.

    Candidates that are significantly worse than the best are dropped: first by mAP, if some pairs
    share a label, then by the agreement with the new model's neighbours, which still
    distinguishes maps when all of them find the right labels. Significantly worse means that the
    95 % bootstrap interval of the paired difference over the held-out pairs is below 0. The
    simplest of the remaining candidates is chosen.

    Args:
      qualities: quality of each candidate, the simplest candidate first.
      seed: seed of the bootstrap.
    """
    alike, decided = list(qualities), "simplicity"
    for measure in ("map", "agreement@10"):
        values = {name: qualities[name].get(measure) for name in alike}
        if any(found is None or np.isnan(found).all() for found in values.values()):
            continue
        best = max(alike, key=lambda name, values=values: np.nanmean(values[name]))
        kept = [n for n in alike if not _surely_lower(values[n] - values[best], seed)]
        if len(kept) < len(alike):
            decided = measure
        alike = kept
    return alike[0], decided


def _surely_lower(difference: np.ndarray, seed: int) -> bool:
    difference = difference[~np.isnan(difference)]
    if not difference.any():
        return False  # the best itself
    rng = np.random.default_rng(seed)
    count = len(difference)
    means = [
        difference[rng.integers(0, count, (_TOGETHER, count))].mean(axis=1)
        for _ in range(_RESAMPLES // _TOGETHER)
    ]
    return bool(np.percentile(np.concatenate(means), _LEVEL) < 0)
