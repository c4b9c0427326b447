"""Fitting one method on a sample, and how well the result retrieves on other pairs."""

import numpy as np

from fct_jax.evaluate.distances import unit_rows
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.evaluate.search import knn
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.inputs import are_unit, take
from fct_jax.upgrade.maps import linear as closed_form
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.maps.uncertainty import SAMPLE, fit_regressor, log_squared_error

_NEIGHBOURS = 10


def fit_closed_form(method: str, old: EmbeddingSet, new: EmbeddingSet, *, seed: int = 0) -> Map:
    """A procrustes or ridge map of all the pairs, with its uncertainty.

    The uncertainty is learnt from each fold's pairs under the map of the other folds: the errors
    of pairs that a map was fitted on are too small.
    """
    large = max(old.dim, new.dim) > 1024
    folds = min(3 if large else 5, len(new))
    rng = np.random.default_rng(seed)
    fold = rng.permutation(len(new)) % folds
    sums, centre = closed_form.fold_sums(old.vectors, new.vectors, fold, folds)
    solve = {"ridge": closed_form.ridge, "procrustes": closed_form.procrustes_folds}[method]
    linear, others = solve(sums, centre)
    unit = are_unit(new.vectors)

    rows = np.sort(rng.permutation(len(new))[:SAMPLE])
    x, y = np.asarray(old.vectors[rows], np.float32), np.asarray(new.vectors[rows], np.float32)
    mapped = np.empty_like(y)
    for f, other in enumerate(others):
        mine = fold[rows] == f
        mapped[mine] = other(x[mine].astype(np.float64))
    norm = np.linalg.norm(mapped, axis=1)
    if unit:
        mapped = unit_rows(mapped).astype(np.float32)
    weights = {
        "weight": linear.weight,
        "scale": np.float32(linear.scale),
        "bias": linear.bias,
        **fit_regressor(x, norm, log_squared_error(mapped, y), seed),
    }
    description = {
        "method": method,
        "dim_in": old.dim,
        "dim_out": new.dim,
        "unit_output": unit,
    }
    if method == "ridge":
        description |= {"penalty": linear.penalty, "cross_validated_error": linear.error}
    return Map(description, weights)


def fit_network(name, old, new, labels, classifier, *, seed: int, **training) -> Map:
    """An FCT or FastFill map of all the pairs; arguments as of ``learned.fit_learned``.

    FCT has no uncertainty of its own: a tenth of the pairs is kept for the regressor's.
    """
    # Training needs JAX's training stack, which the closed forms do without.
    from fct_jax.upgrade.maps.network import fit_learned

    rows = np.random.default_rng(seed + 2).permutation(len(new))
    kept = max(5, len(rows) // 10) if name == "fct" else 0
    rest = np.sort(rows[kept:])
    learned = fit_learned(
        name,
        take(old, rest),
        take(new, rest),
        None if labels is None else labels[rest],
        classifier,
        seed=seed,
        **training,
    )
    weights = dict(learned.weights)
    if kept:
        chosen = np.sort(rows[:kept])
        x = np.asarray(old.vectors[chosen], np.float32)
        y = np.asarray(new.vectors[chosen], np.float32)
        mapped, _ = learned.transform(x)
        norm = np.linalg.norm(mapped, axis=1)
        if are_unit(new.vectors):
            mapped = unit_rows(mapped).astype(np.float32)
        weights |= fit_regressor(x, norm, log_squared_error(mapped, y), seed)
    description = {**learned.description, "unit_output": are_unit(new.vectors)}
    return Map(description, weights, learned.transformer)


def held_out_quality(
    found: Map, old: EmbeddingSet, new: EmbeddingSet, labels, metric: str
) -> dict[str, float]:
    """How well new vectors find what they should in the translated gallery of the same items.

    "agreement@10": share of an item's 10 nearest others in the new space that are also among its
    10 nearest in the translated gallery. "own": share of items whose own translation is the
    nearest of all. With labels also "map" and "cmc@1", leave-one-out.
    """
    target = np.asarray(new.vectors, np.float32)
    mapped, _ = found.transform(old.vectors)
    k = min(_NEIGHBOURS, len(target) - 1)
    _, wanted = knn(target, target, k, metric=metric, exclude_self=True)
    _, got = knn(target, mapped, k, metric=metric, exclude_self=True)
    both = (wanted[:, :, None] == got[:, None, :]).any(axis=2)
    _, nearest = knn(target, mapped, 1, metric=metric)
    quality = {
        "agreement@10": float(both.mean()),
        "own": float((nearest[:, 0] == np.arange(len(target))).mean()),
    }
    if labels is not None:
        found_labels = retrieval_metrics(target, mapped, labels, metric=metric, ks=(1,))
        quality |= {name: float(value) for name, value in found_labels.items()}
    return quality
