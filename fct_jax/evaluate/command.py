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
from fct_jax.evaluate.report import Report, write_report
from fct_jax.evaluate.search import knn, ranked_results
from fct_jax.frozen.model import Transformer, is_run, load_model
from fct_jax.runtime import processes
from fct_jax.runtime.progress import Bar
from fct_jax.runtime.workdir import to_json
from fct_jax.storage.embedding_set import (
    EmbeddingSet,
    check_fingerprint,
    check_paired,
    new_directory,
)


def evaluate(config: ConfigDict, workdir) -> Report | None:
    """Evaluates, prints the tables and writes them with the figure to ``workdir``.

    Several processes share the embedding; the writer evaluates, and the others return None.

    Args:
      config: of ``fct_jax.config.evaluate``.
      workdir: the directory to make: results.json, table.md, curve.png, config.json.

    Raises:
      UserError: sets that do not fit together, vectors that are not finite, unknown names.
    """
    configs.check(config)
    check_metric(config.metric)
    orders = _orders(config.orders)
    workdir = Path(workdir)
    if processes.from_writer(workdir.exists, "is it evaluated"):
        raise UserError(f"{workdir} exists already; nothing was overwritten")

    old, new = (_gallery(config, role) for role in ("old", "new"))
    side = embeddings_of(config.side, "side", config, config.split) if config.side else None
    report = None

    def make() -> None:
        nonlocal report
        report = _report(config, workdir, orders, old, new, side)

    processes.from_writer(make, "evaluate")
    return report


def _report(config: ConfigDict, workdir: Path, orders: list[Order], old, new, side) -> Report:
    check_paired(old, new)
    labels = _labels(old, new)
    report = Report(metric=config.metric, ks=tuple(config.ks), map_at=config.map_at)
    queries = _queries(config, old, new, labels)
    for name, gallery in (("old/old", old), ("new/new", new)):
        model = name.split("/")[0]
        _measure(report, config, name, queries[model], gallery.vectors, labels, queries["labels"])

    for name, found in _transformed(config, old, new, side).items():
        row = f"{name} new/old"
        _measure(report, config, row, queries["new"], found.vectors, labels, queries["labels"])
        report.curves[name] = _curves(config, name, new, found, labels, queries, orders)
    with new_directory(workdir) as folder:
        write_report(report, to_json(config), folder)
    report.show()
    print(f"\nresults.json, table.md and curve.png are in {workdir}")
    return report


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
    """Query vectors of both models; ``labels`` None: the gallery queries itself, leave-one-out."""
    if not (config.query_old or config.query_new):
        return {"old": old.vectors, "new": new.vectors, "labels": None}
    pair = [EmbeddingSet.read(config[f"query_{role}"]) for role in ("old", "new")]
    check_paired(*pair)
    for found, gallery, role in zip(pair, (old, new), ("old", "new"), strict=True):
        check_fingerprint(found, gallery.fingerprint, role)
        found.check_finite()
    return {"old": pair[0].vectors, "new": pair[1].vectors, "labels": _labels(*pair)}


def _measure(report: Report, config, name: str, query, gallery, labels, query_labels) -> None:
    """Adds one row to the table, and its per-class and per-group results where asked for."""
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
    report.rows[name] = results.mean()
    if config.per_class:
        report.per_class[name] = grouped(results, own)
    if config.groups:
        report.per_group[name] = grouped(results, read_groups(config.groups, len(own)))


def _transformed(config: ConfigDict, old: EmbeddingSet, new: EmbeddingSet, side):
    """{name: EmbeddingSet in the new model's space} of config.transformed."""
    found = {}
    for part in filter(None, (p.strip() for p in config.transformed.split(","))):
        name, equals, where = part.partition("=")
        if not equals:
            raise UserError(f"config.transformed holds {part!r}; write NAME=DIR,NAME=DIR")
        if is_run(where):
            found[name] = _transform(name, where, old, side)
        else:
            found[name] = EmbeddingSet.read(where)
        made = found[name]
        check_paired(new, made)
        check_fingerprint(made, new.fingerprint, "new")
        if made.dim != new.dim:
            raise UserError(f"{name} has dimension {made.dim}, the new model {new.dim}")
        made.check_finite()
    return found


def _transform(name: str, run: str, old: EmbeddingSet, side: EmbeddingSet | None) -> EmbeddingSet:
    model = load_model(run)
    if not isinstance(model, Transformer):
        raise UserError(f"config.transformed: {name}={run} is not the run of a transformation")
    side = checked_inputs(model, old, side)
    vectors, uncertainty = model.transform(old.vectors, None if side is None else side.vectors)
    meta = {"fingerprint": model.new_fingerprint}
    return EmbeddingSet(vectors, old.ids, old.labels, uncertainty, meta, name)


def _curves(config, name, new, found, labels, queries, orders) -> dict[str, BackfillCurve]:
    """{order: curve} of one transformation; random orders are averaged."""
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
