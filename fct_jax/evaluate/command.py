"""The evaluate command: retrieval of old, new and transformed models, and backfilling curves."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fct_jax import config as configs
from fct_jax.embed.images import embeddings_of
from fct_jax.embed.transform import checked_inputs
from fct_jax.errors import UserError
from fct_jax.evaluate.backfill import BackfillCurve, backfill_curves
from fct_jax.evaluate.distances import check_metric
from fct_jax.evaluate.metrics import grouped, per_query_results, read_groups
from fct_jax.evaluate.orders import Items, Order, find_order
from fct_jax.evaluate.report import Evaluation
from fct_jax.evaluate.search import knn, ranked_results
from fct_jax.frozen.model import Transformer, is_run, load_model
from fct_jax.runtime import processes
from fct_jax.runtime.plugins import is_import_name
from fct_jax.runtime.progress import Bar
from fct_jax.runtime.workdir import to_json, usable
from fct_jax.storage.embedding_set import (
    EmbeddingSet,
    check_fingerprint,
    check_paired,
    new_directory,
)
from fct_jax.storage.files import check_free
from fct_jax.storage.named import names_in, vectors_of


def evaluate(config: ConfigDict, workdir) -> Evaluation | None:
    """Evaluate, print the tables and write the report to ``workdir``.

    Several processes share the embedding; the writer evaluates, and the others return None.
    Embeddings are kept, so a repeated command only makes the missing ones; the evaluation itself
    starts again.

    Args:
      config: a config of ``fct_jax.config.evaluate``.
      workdir: the directory to make: report.json, report.md, report.html, curves.png.

    Raises:
      UserError: sets that do not match, vectors that are not finite, unknown names.
    """
    config = configs.at_home(config)
    configs.check(config)
    check_metric(config.metric)
    orders = _orders(config.orders)
    workdir = usable(workdir)
    processes.from_writer(lambda: check_free(workdir), "is it evaluated")

    old, new = (_gallery(config, role) for role in ("old", "new"))
    side = embeddings_of(config.side, "side", config, config.split) if config.side else None
    found = None

    def make() -> None:
        nonlocal found
        found = _evaluated(config, orders, old, new, side)
        report = found.report(to_json(config))
        with new_directory(workdir) as folder:
            report.write(folder)
        report.show()
        print(f"\nThe report is in {workdir}; report.html is for the browser.")

    processes.from_writer(make, "evaluate")
    return found


def _evaluated(config: ConfigDict, orders: list[Order], old, new, side) -> Evaluation:
    check_paired(old, new)
    labels = _labels(old, new)
    queries = _queries(config, old, new, labels)
    made = Evaluation(config.metric, tuple(config.ks), config.map_at)
    made.measured_on = _measured_on(config, old, new, queries)
    for name, gallery in (("old/old", old), ("new/new", new)):
        model = name.split("/")[0]
        _measure(made, config, name, queries[model], gallery.vectors, labels, queries["labels"])

    for name, found in _transformed(config, old, new, side, made.notes).items():
        row = f"{name} new/old"
        _measure(made, config, row, queries["new"], found.vectors, labels, queries["labels"])
        made.curves[name] = _curves(config, name, new, found, labels, queries, orders)
    made.notes.append(
        "This is one data set, without intervals: a difference of a point may be chance."
    )
    return made


def _measured_on(config: ConfigDict, old, new, queries) -> dict[str, str]:
    separate = queries["labels"] is not None
    asked = (
        f"{len(queries['labels']):,} of {config.query_new}"
        if separate
        else ("the gallery itself, leave-one-out")
    )
    return {
        "gallery": f"{len(new):,} items, old {old.name} ({old.dim}), new {new.name} ({new.dim})",
        "queries": asked,
        "relevant": "items of the query's class",
        "distance": config.metric,
    }


def _gallery(config: ConfigDict, role: str) -> EmbeddingSet:
    found = embeddings_of(config[role], role, config, config.split)
    found.check_finite()
    return found


def _labels(old: EmbeddingSet, new: EmbeddingSet) -> np.ndarray:
    labels = old.labels if new.labels is None else new.labels
    if labels is None:
        raise UserError(f"neither {old.name} nor {new.name} has labels.npy, which CMC and mAP need")
    return np.asarray(labels)


def _queries(config: ConfigDict, old: EmbeddingSet, new: EmbeddingSet, labels) -> dict:
    """Return both models' query vectors; without ``labels`` the gallery queries itself."""
    if not (config.query_old or config.query_new):
        return {"old": old.vectors, "new": new.vectors, "labels": None}
    pair = [EmbeddingSet.read(config[f"query_{role}"]) for role in ("old", "new")]
    check_paired(*pair)
    for found, gallery, role in zip(pair, (old, new), ("old", "new"), strict=True):
        check_fingerprint(found, gallery.fingerprint, role)
        found.check_finite()
    return {"old": pair[0].vectors, "new": pair[1].vectors, "labels": _labels(*pair)}


def _measure(made: Evaluation, config, name: str, query, gallery, labels, query_labels) -> None:
    """Add one row to the table, and its per-class and per-group results if asked for."""
    separate = query_labels is not None
    own = query_labels if separate else labels
    if config.map_at:
        k = max(config.map_at, *config.ks)
        _, ids = knn(query, gallery, k, metric=config.metric, exclude_self=not separate)
        results = ranked_results(
            ids, own, labels, ks=config.ks, map_at=config.map_at, exclude_self=not separate
        )
    else:
        with Bar(name, len(query), "queries") as bar:
            results = per_query_results(
                query,
                gallery,
                own,
                labels if separate else None,
                metric=config.metric,
                ks=config.ks,
                progress=bar.advance,
            )
    made.rows[name] = results.mean()
    if config.per_class:
        made.per_class[name] = grouped(results, own)
    if config.groups:
        made.per_group[name] = grouped(results, read_groups(config.groups, len(own)))


IDENTITY = "identity"


def _transformed(config: ConfigDict, old: EmbeddingSet, new: EmbeddingSet, side, notes: list[str]):
    """Return {name: EmbeddingSet that the new model searches} of config.transformed.

    "identity", or a set with the old model's fingerprint, is the unchanged old gallery: a
    backward-compatible new model searches it without a transformation.
    """
    found = {}
    for name, where in names_in(config.transformed, "config.transformed").items():
        if where == IDENTITY:
            made = old
        elif is_run(where):
            made = _transform(name, where, old, new, side)
        elif (Path(where) / "map.json").is_file() or is_import_name(where):
            made = _mapped(name, where, old, new)
        else:
            made = vectors_of(where, f"config.transformed: {name}")
        check_paired(new, made)
        if made.dim != new.dim:
            raise UserError(f"{name} has dimension {made.dim}, but the new model has {new.dim}")
        if made is old or (made.fingerprint and made.fingerprint == old.fingerprint):
            notes.append(f"{name}: the new model searches the unchanged old gallery.")
        else:
            check_fingerprint(made, new.fingerprint, "new")
        made.check_finite()
        found[name] = made
    return found


def _transform(
    name: str, run: str, old: EmbeddingSet, new: EmbeddingSet, side: EmbeddingSet | None
) -> EmbeddingSet:
    model = load_model(run)
    if not isinstance(model, Transformer):
        raise UserError(
            f"config.transformed: {name}={run} is not the run of a transformation; a "
            f"backward-compatible model is config.new, and {name}={IDENTITY} searches the old "
            "gallery with it"
        )
    _check_models(name, run, model, old, new)
    side = checked_inputs(model, old, side)
    vectors, uncertainty = model.transform(old.vectors, None if side is None else side.vectors)
    meta = {"fingerprint": model.new_fingerprint}
    return EmbeddingSet(vectors, old.ids, old.labels, uncertainty, meta, name)


def _mapped(name: str, where: str, old: EmbeddingSet, new: EmbeddingSet) -> EmbeddingSet:
    """Return the old vectors by a map, of a directory or a Python function."""
    from fct_jax.upgrade.maps.loading import load_map  # late: few evaluations need it

    mapping = load_map(where)
    if mapping.direction != "forward":
        raise UserError(
            f"config.transformed: {name}={where} maps new vectors to the old model's space, but "
            "the old gallery is to be mapped to the new one's"
        )
    _check_models(name, where, mapping, old, new)
    vectors, uncertainty = mapping.transform(old.vectors)
    meta = {"fingerprint": mapping.new_fingerprint}
    return EmbeddingSet(vectors, old.ids, old.labels, uncertainty, meta, name)


def _check_models(name: str, where: str, model, old: EmbeddingSet, new: EmbeddingSet) -> None:
    """Raise UserError if a transformation or a map was made for other models than these."""
    for role, given, trained in (
        ("old", old, model.old_fingerprint),
        ("new", new, model.new_fingerprint),
    ):
        if given.fingerprint and trained and given.fingerprint != trained:
            raise UserError(
                f"config.transformed: {name}={where} was trained with another {role} model "
                f"({trained}) than config.{role} ({given.fingerprint}, {given.name})"
            )


def _curves(config, name, new, found, labels, queries, orders) -> dict[str, BackfillCurve]:
    """Return {order: curve} of one transformation; random orders are averaged."""
    wanted = {}
    for order in orders:
        for repeat in range(1 if order.needs else config.random_orders):
            items = Items(
                len(new),
                config.seed + repeat,
                config.metric,
                new=new.vectors,
                transformed=found.vectors,
                uncertainty=found.uncertainty,
                classes=labels,
            )
            if not order.lacks(items):  # FCT has no uncertainty
                wanted[order.name, repeat] = order.rank(items)
    with Bar(f"{name} backfilling", len(queries["new"]), "queries") as bar:
        curves = backfill_curves(
            new.vectors,
            found.vectors,
            labels,
            wanted,
            steps=config.steps,
            metric=config.metric,
            ks=config.ks,
            query=None if queries["labels"] is None else queries["new"],
            query_labels=queries["labels"],
            progress=bar.advance,
        )
    return {kind: _mean([c for (k, _), c in curves.items() if k == kind]) for kind, _ in wanted}


def _mean(curves: list[BackfillCurve]) -> BackfillCurve:
    values = {
        name: np.mean([curve.values[name] for curve in curves], axis=0) for name in curves[0].values
    }
    return BackfillCurve(curves[0].fraction, values)


def _orders(text: str) -> list[Order]:
    return [find_order(name.strip()) for name in text.split(",") if name.strip()]
