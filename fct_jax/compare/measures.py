"""Measures of a new model's compatibility: P scores, update gain, negative flips, hot refresh."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fct_jax.errors import UserError

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def compatibility_scores(self_, cross, old, star) -> dict[str, float]:
    """Return P_up, P_comp and P_1 over several test sets (AdvBCT, CVPR 2023).

    With σ the logistic function and d a test set: ``p_up = mean_d σ((self - star) / star)``,
    ``p_comp = mean_d σ((cross - old) / (star - old))``, and ``p_1`` the mean over d of the
    harmonic mean of the two terms of d (the form that gives the published numbers; not the
    harmonic mean of the two means).

    Args: sequences (d,), one score for each test set, all in the same unit (percent or not).
      self_: new query and new gallery.  cross: new query, old gallery.
      old: old query and old gallery.  star: the model trained alone on the new data, with itself.

    Returns: fractions in (0, 1); the published tables print them times 100.

    Raises:
      UserError: no test set, different lengths, values that are not finite, a ``star`` of 0 or
        equal to ``old`` (the scores divide by that difference).

    >>> found = compatibility_scores(self_=[80.0], cross=[65.0], old=[60.0], star=[80.0])
    >>> {name: round(value, 3) for name, value in found.items()}
    {'p_up': 0.5, 'p_comp': 0.562, 'p_1': 0.529}
    """
    self_, cross, old, star = _test_sets(self_=self_, cross=cross, old=old, star=star)
    if (star == 0).any():
        raise UserError("star is 0 in a test set: self-score ratios are not defined")
    up = _sigmoid((self_ - star) / star)
    comp = _sigmoid(update_gain(cross, old, star))
    harmonic = 2 * up * comp / np.maximum(up + comp, np.finfo(np.float64).tiny)
    return {"p_up": float(up.mean()), "p_comp": float(comp.mean()), "p_1": float(harmonic.mean())}


def update_gain(cross, old, star) -> np.ndarray:
    """Return the share (d,) of the possible gain that is reached without re-embedding the gallery.

    ``(cross - old) / (star - old)``: 0 keeps the old model's score, 1 reaches the new model
    trained alone (Hot-refresh, ICLR 2022). Arguments and errors as `compatibility_scores`.

    >>> update_gain(cross=[65.0], old=[60.0], star=[80.0]).tolist()
    [0.25]
    """
    cross, old, star = _test_sets(cross=cross, old=old, star=star)
    if (star == old).any():
        raise UserError("star equals old in a test set: there is no gain to compare with")
    return (cross - old) / (star - old)


def negative_flip_rate(old_correct, new_correct) -> dict[str, float]:
    """Return the share of queries that the old model answers correctly and the new one does not.

    Args:
      old_correct, new_correct: (Q,) booleans, for instance whether the nearest item is right.

    Returns:
      ``nfr``, the share of all queries; ``relative_nfr``, that share divided by the share for two
      models with the same accuracies and independent errors, ``accuracy_old * error_new``
      (Positive-congruent training, CVPR 2021). 0 if no flip is possible.

    Raises:
      UserError: no query, or lengths that differ.

    >>> negative_flip_rate([True, True, False, True], [True, False, True, True])["nfr"]
    0.25
    """
    old_correct, new_correct = np.asarray(old_correct, bool), np.asarray(new_correct, bool)
    if old_correct.shape != new_correct.shape or old_correct.ndim != 1 or old_correct.size == 0:
        raise UserError(
            "negative flips need one answer of each model to each query: "
            f"old {old_correct.shape}, new {new_correct.shape}"
        )
    rate = float((old_correct & ~new_correct).mean())
    expected = float(old_correct.mean() * (~new_correct).mean())
    return {"nfr": rate, "relative_nfr": rate / expected if expected else 0.0}


class HotRefreshCurve(NamedTuple):
    """``share`` (S,) of the gallery that the new model has embedded; ``values[name]`` (S,)."""

    share: np.ndarray
    values: dict[str, np.ndarray]


def hot_refresh_order(n: int, seed: int = 0) -> np.ndarray:
    """Return a seeded permutation (n,): the order in which gallery items are re-embedded.

    The published evaluation refreshes whole batches, drawn again for each share, so an item
    may return to its old embedding. Here items are refreshed one by one and stay refreshed.

    >>> sorted(hot_refresh_order(4, seed=0).tolist())
    [0, 1, 2, 3]
    """
    # Imported here because fct_jax.evaluate offers the functions of this file.
    from fct_jax.evaluate.orders import ORDERS, Items

    return ORDERS["random"].rank(Items(n, seed))


def hot_refresh_curve(
    new,
    old,
    score: Callable[[np.ndarray], dict[str, float]],
    *,
    shares: Sequence[float] = SHARES,
    order=None,
    seed: int = 0,
) -> HotRefreshCurve:
    """Return scores of new queries while the gallery is refreshed (Hot-refresh, ICLR 2022).

    Args:
      new, old: (n, D) the gallery by the new and by the old model, in the same order.
      score: gives the measures of one mixed gallery (n, D); it must not keep that array.
      shares: growing shares of the gallery that are refreshed; the first ``floor(share * n)``
        items of the order have their new embedding.
      order: (n,) permutation; by default `hot_refresh_order`.

    Raises:
      UserError: galleries of different shape, shares that do not grow or leave [0, 1], an order
        that is not a permutation.

    >>> new, old = np.ones((4, 2)), np.zeros((4, 2))
    >>> found = hot_refresh_curve(new, old, lambda mixed: {"refreshed": float(mixed[:, 0].mean())})
    >>> found.values["refreshed"].tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    new, old = np.asarray(new), np.asarray(old)
    if new.shape != old.shape or new.ndim != 2:
        raise UserError(f"new {new.shape} and old gallery {old.shape} must be (n, D) alike")
    shares = np.asarray(shares, np.float64)
    if shares.size == 0 or (np.diff(shares) < 0).any() or not ((shares >= 0) & (shares <= 1)).all():
        raise UserError(f"shares must grow within [0, 1]: {shares.tolist()}")
    order = hot_refresh_order(len(new), seed) if order is None else np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(len(new))):
        raise UserError(f"the order must be a permutation of {len(new)} items")

    gallery, done, points = old.copy(), 0, []
    for share in shares:
        upto = int(share * len(new) + 1e-9)  # 0.29 * 100 is 28.999… in floating point
        refreshed = order[done:upto]
        gallery[refreshed] = new[refreshed]
        done = upto
        points.append(score(gallery))
    values = {name: np.array([point[name] for point in points]) for name in points[0]}
    return HotRefreshCurve(shares, values)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # tanh does not overflow, however large the ratio is.
    return 0.5 * (1 + np.tanh(x / 2))


def _test_sets(**columns) -> list[np.ndarray]:
    """Return the columns as float64 (d,), after checking that they belong together."""
    arrays = {name: np.atleast_1d(np.asarray(v, np.float64)) for name, v in columns.items()}
    lengths = {name: array.shape for name, array in arrays.items()}
    first = next(iter(arrays.values()))
    if first.ndim != 1 or first.size == 0 or len(set(lengths.values())) > 1:
        raise UserError(f"each column needs one score for each test set, at least one: {lengths}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name.strip('_')} scores hold NaN or infinite values")
    return list(arrays.values())
