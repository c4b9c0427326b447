"""Learning a map from old to new vectors on a sample of items embedded by both models."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from fct_jax import config as configs
from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.distances import METRICS
from fct_jax.runtime.progress import console
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.checks.guards import SPACE
from fct_jax.upgrade.checks.known_answers import check_known_answers
from fct_jax.upgrade.inputs import (
    FEWEST,
    load_array,
    nonzero_rows,
    open_sample,
    paired,
    row_hashes,
    take,
)
from fct_jax.upgrade.maps.map import METHODS, KnownPairs, Map
from fct_jax.upgrade.maps.methods import fit_closed_form, fit_network, held_out_quality

_KNOWN = 256  # known answers kept with the map
_MOST_HELD_OUT = 5000
_ANSWERS = 1000  # held-out pairs that must find their own translation
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
    epochs: int = 0,
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
      inner_dim, epochs, batch_size: of the training of fct and fastfill; epochs 0: 80, or fewer
        of a large sample, so that a training takes minutes on a CPU.
      seed: of the split and of every fit.
      out: directory for the map; None: it is not written.

    Returns the map; ``description["held_out"]`` has the retrieval quality of each candidate.

    Raises:
      UserError: fewer than 20 pairs, vectors that are not finite, sizes or labels that do not
        fit, or pairs so unrelated that they must be wrong.
    """
    tried = _tried(method, candidates)
    for what, value, least in (
        ("epochs", epochs, 0),
        ("batch_size", batch_size, 0),
        ("inner_dim", inner_dim, 1),
    ):
        if value < least:
            raise UserError(f"{what} must be {least} or more, not {value}")
    if out is not None and Path(out).exists():
        raise UserError(f"{out} exists already; nothing was overwritten")
    given_new = open_sample(new, "new")
    old, new = paired(open_sample(old, "old"), given_new)
    old.check_finite()
    new.check_finite()
    labels = _labels(load_array(labels, "labels"), given_new, old, new)
    if labels is None and not _absent(classifier):
        raise UserError("a classifier is of use with labels alone; give config.labels too")
    usable = np.flatnonzero(nonzero_rows(old.vectors) & nonzero_rows(new.vectors))
    zeros = len(new) - len(usable)
    if zeros:
        # A zero vector is what some services return for what they could not embed.
        if len(usable) < FEWEST:
            raise UserError(f"{zeros} of {len(new)} pairs have a zero vector")
        old, new = take(old, usable), take(new, usable)
        labels = None if labels is None else labels[usable]
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
    for number, name in enumerate(tried, 1):
        console.print(f"fitting {name} ({number} of {len(tried)}) on {len(inside):,} pairs")
        begin = time.monotonic()
        if name in ("procrustes", "ridge"):
            made = fit_closed_form(name, *sample, seed=seed)
        else:
            made = fit_network(
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
    check_known_answers(mapped, probe[1].vectors[:_ANSWERS], metric, "the sample")
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
        "zero_pairs_left_out": zeros,
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


def _absent(what) -> bool:
    return what is None or (isinstance(what, str) and not what)


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
    if found.description["zero_pairs_left_out"]:
        print(f"{found.description['zero_pairs_left_out']} pairs with a zero vector were left out")
    print(f"{workdir}: {found.method} map {found.dim_in} → {found.dim_out}, {found.fingerprint}")
    return found
