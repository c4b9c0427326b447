"""Learning a map from old to new vectors on a sample of items embedded by both models."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from fct_jax import config as configs
from fct_jax.embeddings import EmbeddingSet
from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.distances import METRICS, unit_rows
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.evaluate.search import knn
from fct_jax.upgrade import closed_form
from fct_jax.upgrade.guards import SPACE, check_known_answers
from fct_jax.upgrade.inputs import (
    are_unit,
    load_array,
    open_sample,
    paired,
    row_hashes,
    take,
)
from fct_jax.upgrade.maps import METHODS, KnownPairs, Map
from fct_jax.upgrade.uncertainty import SAMPLE, fit_regressor, log_squared_error

_KNOWN = 256  # known answers kept with the map
_MOST_HELD_OUT = 5000
_ANSWERS = 1000  # held-out pairs that must find their own translation
_NEIGHBOURS = 10
_ALIKE = 0.005


def fit(
    old,
    new,
    *,
    method: str = "auto",
    labels=None,
    classifier=None,
    candidates: Sequence[str] = METHODS,
    held_out: float = 0.2,
    metric: str = "",
    inner_dim: int = 2048,
    epochs: int = 80,
    batch_size: int = 0,
    seed: int = 0,
    out=None,
) -> Map:
    """Learns h with h(old) ≈ new from pairs.

    Args:
      old, new: the sample embedded by both models: EmbeddingSets, arrays (N, do) and (N, dn), or
        paths of EmbeddingSets, ``.npy`` files or Parquet folders. Pairs are found by id.
      method: "procrustes", "ridge", "fct", "fastfill", or "auto": the candidate that retrieves
        best among pairs that none was fitted on: by mAP with labels, the agreement with the new
        model's neighbours settling what differs by less than half a point; else by that alone.
      labels: (N,) integers or a ``.npy`` file, in the order of ``new``; None: those of the sets,
        where they have any. FastFill and the choice make use of them.
      classifier: of the new model, for FastFill: (C, dn), a ``.npy`` file or a run; None: a
        linear one is fitted on the new vectors, where there are labels.
      candidates: what "auto" tries.
      held_out: share of the pairs that no map is fitted on (5,000 pairs at most).
      metric: "l2" or "cosine", by which the new vectors are searched; "": as the new set says.
      inner_dim, epochs, batch_size: of the training of fct and fastfill.
      seed: of the split and of every fit.
      out: directory for the map; None: it is not written.

    Returns the map; ``description["held_out"]`` has the retrieval quality of each candidate.

    Raises:
      UserError: fewer than 20 pairs, vectors that are not finite, sizes or labels that do not
        fit, or pairs so unrelated that they must be wrong.
    """
    tried = _tried(method, candidates)
    if out is not None and Path(out).exists():
        raise UserError(f"{out} exists already; nothing was overwritten")
    given_new = open_sample(new, "new")
    old, new = paired(open_sample(old, "old"), given_new)
    old.check_finite()
    new.check_finite()
    labels = _labels(load_array(labels, "labels"), given_new, old, new)
    metric = metric or new.meta.get("metric", "l2")
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if not 0 < held_out < 1:
        raise UserError(f"held_out must be a share between 0 and 1, not {held_out}")
    order = np.random.default_rng(seed).permutation(len(new))
    count = min(max(int(held_out * len(new)), 5), _MOST_HELD_OUT)
    outside, inside = np.sort(order[:count]), np.sort(order[count:])
    sample = take(old, inside), take(new, inside)
    probe = take(old, outside), take(new, outside)
    inside_labels = None if labels is None else labels[inside]
    outside_labels = None if labels is None else labels[outside]

    scores, maps = {}, {}
    for name in tried:
        begin = time.monotonic()
        if name in ("procrustes", "ridge"):
            made = fit_closed_form(name, *sample, seed=seed)
        else:
            made = _fit_learned(
                name,
                *sample,
                inside_labels,
                classifier,
                inner_dim=inner_dim,
                epochs=epochs,
                batch_size=batch_size,
                seed=seed,
            )
        seconds = time.monotonic() - begin
        maps[name] = made
        scores[name] = {
            **held_out_quality(made, *probe, outside_labels, metric),
            "seconds": round(seconds, 2),
        }
    by = "map" if labels is not None else "agreement@10"
    # Where labels cannot tell methods apart (all near 100 %, say), neighbourhoods can.
    enough = max(score[by] for score in scores.values()) - _ALIKE
    alike = [name for name in tried if scores[name][by] >= enough]
    best = max(alike, key=lambda name: scores[name]["agreement@10"])
    chosen = maps[best]
    mapped, _ = chosen.transform(probe[0].vectors[:_ANSWERS])
    check_known_answers(mapped, probe[1].vectors[:_ANSWERS], 0.0, metric, "the sample")
    kept = np.sort(np.random.default_rng(seed + 1).permutation(count)[:_KNOWN])
    description = {
        **chosen.description,
        "old_fingerprint": old.fingerprint,
        "new_fingerprint": new.fingerprint,
        "old_meta": {key: old.meta[key] for key in SPACE if key in old.meta},
        "new_meta": {key: new.meta[key] for key in SPACE if key in new.meta},
        "metric": metric,
        "pairs": len(inside),
        "pairs_held_out": len(outside),
        "judged_by": by,
        "held_out": scores,
    }
    known = KnownPairs(
        new.ids[outside][kept],
        np.asarray(probe[0].vectors[kept], np.float32),
        np.asarray(probe[1].vectors[kept], np.float32),
    )
    fitted = np.sort(row_hashes(sample[0].vectors))
    found = Map(description, chosen.weights, chosen.transformer, known, fitted)
    if out is not None:
        found.save(out)
    return found


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


def _fit_learned(name, old, new, labels, classifier, *, seed: int, **training) -> Map:
    """FCT has no uncertainty of its own: a tenth of the pairs is kept for the regressor's."""
    # Training needs JAX's training stack, which the closed forms do without.
    from fct_jax.upgrade.learned import fit_learned

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


def _tried(method: str, candidates: Sequence[str]) -> tuple[str, ...]:
    for name in (method, *candidates):
        if name not in METHODS and name != "auto":
            raise unknown("method", name, ("auto", *METHODS))
    if method != "auto":
        return (method,)
    if not candidates or "auto" in candidates:
        raise UserError(f"candidates must be some of {', '.join(METHODS)}")
    return tuple(candidates)


def _labels(given, given_new: EmbeddingSet, old: EmbeddingSet, new: EmbeddingSet):
    """(N,) labels of the pairs: those given for all of the new set, or those of a set."""
    if given is not None:
        if given.shape != (len(given_new),) or given.dtype.kind not in "iu":
            raise UserError(
                f"labels must be {len(given_new)} integers, one for each new vector, "
                f"not {given.dtype} {given.shape}"
            )
        if len(given_new) == len(new):
            return given
        return given[np.isin(given_new.ids, new.ids)]
    for found in (new, old):
        if found.labels is not None:
            return np.asarray(found.labels)
    return None


def fit_command(config: ConfigDict, workdir) -> Map:
    """The subcommand: ``config.fit`` of ``config.old`` and ``config.new`` to a map directory."""
    configs.check(config)
    if not workdir:
        raise UserError("give --workdir, the directory for the map")
    options = config.fit.to_dict()
    options["candidates"] = [name.strip() for name in options["candidates"].split(",") if name]
    found = fit(
        config.old,
        config.new,
        labels=config.labels,
        metric=config.metric,
        seed=config.seed,
        out=workdir,
        **options,
    )
    table = Table(title=f"{found.description['pairs_held_out']} pairs that were held out")
    table.add_column("method")
    scores = found.description["held_out"]
    names = list(next(iter(scores.values())))
    for name in names:
        table.add_column(name, justify="right")
    for method, quality in scores.items():
        cells = [f"{quality[n]:.1f}" if n == "seconds" else f"{quality[n]:.3f}" for n in names]
        table.add_row(method, *cells, style="bold" if method == found.method else None)
    Console().print(table)
    print(f"{workdir}: {found.method} map {found.dim_in} → {found.dim_out}, {found.fingerprint}")
    return found
