"""Learning a map from old to new vectors on a sample of items embedded by both models."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from fct_jax.errors import UserError, unknown
from fct_jax.evaluate.distances import METRICS
from fct_jax.runtime import extras
from fct_jax.runtime.progress import console
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.files import check_free
from fct_jax.storage.named import array_of
from fct_jax.upgrade.checks.degenerate import check_alive
from fct_jax.upgrade.checks.guards import SPACE
from fct_jax.upgrade.checks.known_answers import (
    MOST,
    UNKNOWN,
    ask,
    ask_pairing,
    check_known_answers,
)
from fct_jax.upgrade.inputs import FEWEST, nonzero_rows, paired, row_hashes
from fct_jax.upgrade.maps.choosing import choose, held_out_quality, means_of
from fct_jax.upgrade.maps.fitting_unpaired import fit_without_pairs
from fct_jax.upgrade.maps.map import KnownPairs, Map
from fct_jax.upgrade.maps.methods import METHODS, Method, Pairs, Training, find_method, fit_method
from fct_jax.upgrade.stores.samples import SAMPLE, open_pair

_KNOWN = 256  # known answers kept with the map
_MOST_HELD_OUT = 5000
_DIRECTIONS = ("forward", "backward")
AUTO = tuple(name for name, method in METHODS.items() if method.auto)


def fit(
    old,
    new,
    *,
    method="auto",
    direction: str = "forward",
    labels=None,
    classifier=None,
    candidates: Sequence[str] = AUTO,
    held_out: float = 0.2,
    metric: str = "",
    inner_dim: int = 2048,
    epochs: int = 0,
    batch_size: int = 0,
    uncertainty: bool = True,
    seed: int = 0,
    sample: int = SAMPLE,
    out=None,
) -> Map:
    """Learn h with h(old) ≈ new from pairs.

    Args:
      old, new: the sample embedded by both models: EmbeddingSets, arrays (N, do) and (N, dn),
        paths of EmbeddingSets, ``.npy`` files or Parquet folders, or URIs of stores. Pairs are
        found by id.
      method: a row of ``methods.METHODS``, "module:NAME", a Method, a Python function from old
        vectors to new ones, or "auto": the simplest of the candidates that retrieve best on
        held-out pairs (see ``choosing.choose``). A method that needs more pairs than there are is
        replaced by a simpler one, with a note. "unpaired" alone needs no pairs: ``old`` and ``new``
        are then samples of the same kind of content (see ``fitting_unpaired.fit_without_pairs``).
      direction: "forward"; or "backward" for a *bridge*, which maps vectors of the new model, such
        as queries, to the old model's space, so that they search the unchanged old gallery.
      labels: (N,) integers or a ``.npy`` file, in the order of ``new``; None uses the labels of the
        sets, if they have any. FastFill and the choice of the map use them.
      classifier: classifier of the new model, for FastFill: (C, dn), a ``.npy`` file or a run; with
        None a linear classifier is fitted on the new vectors if there are labels.
      candidates: methods that "auto" tries.
      held_out: share of the pairs that no map is fitted on (at most 5,000 pairs).
      metric: "l2" or "cosine", the metric of searches in the target space; "" takes the metric of
        the target space's set.
      inner_dim, epochs, batch_size: settings of the training of fct and fastfill; epochs 0 means
        80, or fewer for a large sample, so that a training takes minutes on a CPU; batch_size 0
        means 1,024, or an eighth of a smaller sample.
      uncertainty: whether the map learns how reliable each of its vectors is. Without it a closed
        form takes half of the time; a bridge that maps only queries does not need it.
      seed: seed of the split and of every fit.
      sample: number of items taken from a store, if ``old`` or ``new`` is the URI of one.
      out: directory to write the map to; None writes nothing.

    Returns:
      The map. ``description["quality"]`` has the retrieval quality of each candidate.

    Raises:
      UserError: fewer than 20 pairs, vectors that are not finite or are all equal, sizes or labels
        that do not match, or pairs so unrelated that they must be wrong.

    Example::

        h = upgrade.fit("sample_old.npy", "sample_new.npy", method="procrustes", out="map")
        vectors, log_variance = h.transform(np.load("gallery_old.npy"))
        bridge = upgrade.fit("sample_old.npy", "sample_new.npy", direction="backward")
    """
    training = _training(inner_dim, epochs, batch_size)
    tried = _tried(method, candidates)
    if out is not None:
        check_free(out)
    if direction not in _DIRECTIONS:
        raise unknown("direction", direction, _DIRECTIONS)
    if len(tried) == 1 and next(iter(tried.values())).fit_unpaired is not None:
        if not (_absent(labels) and _absent(classifier)):
            raise UserError(
                f"{next(iter(tried))} uses no pairs, so it takes neither labels nor a classifier"
            )
        found = fit_without_pairs(
            *next(iter(tried.items())), old, new, direction=direction, held_out=held_out,
            metric=metric, seed=seed, sample=sample,
        )  # fmt: skip
        if out is not None:
            found.save(out)
        return found
    opened = open_pair(old, new, sample, seed)
    pairs, zeros = _pairs(*opened, labels, classifier, training, seed)
    if direction == "backward":
        pairs = dataclasses.replace(pairs, old=pairs.new, new=pairs.old)
    metric = metric or pairs.new.meta.get("metric", "l2")
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    inside, outside = _split(pairs, held_out)
    # Check before a training that may take minutes. The rows keep their order, so that shifts show.
    some = np.sort(np.random.default_rng(seed).permutation(len(pairs.new))[:MOST])
    answer = ask_pairing(pairs.old.vectors[some], pairs.new.vectors[some])
    check_known_answers(answer, "the sample")
    maps, qualities, seconds, left_out = _fit_all(tried, inside, outside, metric, uncertainty)
    best, judged_by = choose(qualities, seed)
    chosen = maps[best]
    some_old, some_new = (part.vectors[:MOST] for part in (outside.old, outside.new))
    mapped, _ = chosen.transform(some_old)
    check_known_answers(ask(some_old, mapped, some_new, metric, UNKNOWN), f"the {best} map")
    description = {
        **chosen.description,
        "direction": direction,
        "old_fingerprint": pairs.old.fingerprint,
        "new_fingerprint": pairs.new.fingerprint,
        "old_meta": {key: pairs.old.meta[key] for key in SPACE if key in pairs.old.meta},
        "new_meta": {key: pairs.new.meta[key] for key in SPACE if key in pairs.new.meta},
        "metric": metric,
        "pairs": len(inside),
        "pairs_held_out": len(outside),
        "zero_pairs_left_out": zeros,
        "judged_by": judged_by,
        "quality": {n: {**means_of(qualities[n]), "seconds": seconds[n]} for n in maps},
        "left_out": left_out,
    }
    fitted = np.sort(row_hashes(inside.old.vectors))
    known = _known(outside, seed)
    found = Map(description, chosen.function, chosen.uncertainty, known, fitted)
    if out is not None:
        found.save(out)
    return found


def _training(inner_dim: int, epochs: int, batch_size: int) -> Training:
    for what, value, least in (
        ("epochs", epochs, 0),
        ("batch_size", batch_size, 0),
        ("inner_dim", inner_dim, 1),
    ):
        if value < least:
            raise UserError(f"{what} must be {least} or more, not {value}")
    return Training(inner_dim, epochs, batch_size)


def _tried(method, candidates: Sequence[str]) -> dict[str, Method]:
    """Return the methods to fit by name, the simplest first."""
    given = tuple(candidates)
    for name in given:
        if name == "auto":
            raise UserError(f"candidates must be some of {', '.join(METHODS)}")
        find_method(name)
    if isinstance(method, str) and method == "auto":
        if not given:
            raise UserError(f"candidates must be some of {', '.join(METHODS)}")
        known = [name for name in METHODS if name in given]
        return dict(map(find_method, (*known, *(name for name in given if name not in known))))
    return dict([find_method(method)])


def _pairs(old, new, labels, classifier, training: Training, seed: int) -> tuple[Pairs, int]:
    """Return the usable pairs, and the number of pairs with a zero vector."""
    given_new = new
    old, new = paired(old, given_new)
    old.check_finite()
    new.check_finite()
    labels = _labels(array_of(labels, "labels"), given_new, old, new)
    if _absent(classifier):
        classifier = None
    if labels is None and classifier is not None:
        raise UserError("a classifier can only be used with labels; give labels, too")
    pairs = Pairs(old, new, labels, classifier, training, seed)
    usable = np.flatnonzero(nonzero_rows(old.vectors) & nonzero_rows(new.vectors))
    zeros = len(new) - len(usable)
    if zeros:
        # Some services return a zero vector for an item that they could not embed.
        if len(usable) < FEWEST:
            raise UserError(f"{zeros} of {len(new)} pairs have a zero vector")
        pairs = pairs.of(usable)
    check_alive(pairs.old, pairs.new)
    return pairs, zeros


def _absent(what) -> bool:
    return what is None or (isinstance(what, str) and not what)


def _labels(given, given_new: EmbeddingSet, old: EmbeddingSet, new: EmbeddingSet):
    """Return (N,) labels of the pairs: those given for the whole new set, or those of a set."""
    if given is not None:
        if given.shape != (len(given_new),) or given.dtype.kind not in "iu":
            raise UserError(
                f"labels must be {len(given_new)} integers, one per new vector, "
                f"not {given.dtype} {given.shape}"
            )
        if len(given_new) == len(new):
            return given
        return given[np.isin(given_new.ids, new.ids)]
    for found in (new, old):
        if found.labels is not None:
            return np.asarray(found.labels)
    return None


def _split(pairs: Pairs, held_out: float) -> tuple[Pairs, Pairs]:
    """Return the pairs to fit on and those to judge by."""
    if not 0 < held_out < 1:
        raise UserError(f"held_out must be a share between 0 and 1, not {held_out}")
    order = np.random.default_rng(pairs.seed).permutation(len(pairs))
    count = min(max(int(held_out * len(pairs)), 5), _MOST_HELD_OUT)
    return pairs.of(np.sort(order[count:])), pairs.of(np.sort(order[:count]))


def _fit_all(tried: dict[str, Method], inside: Pairs, outside: Pairs, metric, uncertainty):
    """Return maps, qualities and seconds by method, and the reasons for omitted methods."""
    maps, qualities, seconds, left_out = {}, {}, {}, {}
    waiting = list(tried.items())
    for name, method in waiting:
        if reason := method.refusal(len(inside), inside.old.dim, inside.new.dim):
            left_out[name] = reason
            if len(tried) == 1 and method.instead:
                said = f"{name} is left out: {reason}; {method.instead} is fitted instead"
                console.print(said, markup=False)
                waiting.append((method.instead, METHODS[method.instead]))
            continue
        console.print(f"fitting {name} on {len(inside):,} pairs")
        begin = time.monotonic()
        try:
            maps[name] = fit_method(name, method, inside, uncertainty)
        except ModuleNotFoundError as error:
            # Candidates whose packages are not installed are skipped if there are others.
            if len(tried) == 1 or extras.missing(error) is None:
                raise
            left_out[name] = extras.missing(error)
            console.print(f"{name} is left out: {left_out[name]}", markup=False)
            continue
        seconds[name] = round(time.monotonic() - begin, 2)
        judged = (outside.old, outside.new, outside.labels)
        qualities[name] = held_out_quality(maps[name], *judged, metric)
    if not maps:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"no map can be fitted: {reasons}")
    return maps, qualities, seconds, left_out


def _known(outside: Pairs, seed: int) -> KnownPairs:
    kept = np.sort(np.random.default_rng(seed + 1).permutation(len(outside))[:_KNOWN])
    old, new = (np.asarray(s.vectors[kept], np.float32) for s in (outside.old, outside.new))
    return KnownPairs(outside.new.ids[kept], old, new)
