"""One upgrade of a gallery or store: planned, applied, watched, switched and rolled back."""

import contextlib
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.migration.planning import Plan, Wanted
from fct_jax.upgrade.migration.probe import open_probe
from fct_jax.upgrade.migration.reembed import Asking
from fct_jax.upgrade.migration.settings import expanded, merged, named
from fct_jax.upgrade.migration.sides import Opened, Run, Side, place_of, side_of
from fct_jax.upgrade.migration.status import RECALL_QUERIES, Status
from fct_jax.upgrade.parts.engines import Engine
from fct_jax.upgrade.parts.numbers import Part


class Upgrade:
    """An upgrade of a gallery, or of a store, from an old to a new embedding model.

    Its directory remembers map, gallery, probe and settings in ``upgrade.json``, so only the first
    call must name them. Every call may be killed or interrupted at any moment; the same call
    resumes. The old gallery is never changed.

    Args:
      workdir: the upgrade's directory; the first call makes it.

    Example:

        upgrade = Upgrade("upgrade")
        upgrade.plan("map", "gallery_old", budget_items=400)
        upgrade.apply(reembed="mymodel:embed_ids")
        print(upgrade.status())
    """

    def __init__(self, workdir):
        self.workdir = expanded(workdir)
        self._object = None  # a map that was given as an object

    def plan(
        self,
        map=None,
        gallery=None,
        *,
        order: str | None = Wanted.order,
        traffic=Wanted.traffic,
        budget_items: int | None = Wanted.budget_items,
        budget_money: float | None = Wanted.budget_money,
        target_quality: float | None = Wanted.target_quality,
        items_per_second: float | None = Wanted.items_per_second,
        cost_per_1000: float | None = Wanted.cost_per_1000,
        cost_per_core_hour: float | None = Wanted.cost_per_core_hour,
        serve: str = Wanted.serve,
        seed: int = Wanted.seed,
        probe=None,
        batch_size: int | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
        on_bad: str | None = None,
        duplicates: str | None = None,
        in_place: bool | None = None,
    ) -> Plan:
        """Decide which items to re-embed, in which order, and forecast the resulting quality.

        The gallery is read once and certified for `apply`; a translated one is not read again.

        Args:
          map: a Map, its directory, the run of a transformation, "identity" or ``module:name``.
          gallery: the old gallery, as for `open_gallery`, or the URI of a store, as for
            `open_store`.
          order: name of an order of re-embedding (`fct_jax.evaluate.orders.ORDERS`); None: by
            uncertainty if the map gives one.
          traffic: file with the traffic of each item, as for ``ways.traffic.read_traffic``.
          budget_items, budget_money, target_quality: limits, of which the smallest counts; None is
            no limit. ``target_quality`` is the forecast quality on the probe.
          items_per_second, cost_per_1000: speed and price of the new model, for times and costs.
          cost_per_core_hour: price of an hour of a core, for the cost of translating; None: 0.05.
          serve: way of serving that the forecast is made for (`fct_jax.upgrade.ways.WAYS`).
          seed: seed of a random order.
          probe: folder of queries for measuring quality; see `Probe`.
          batch_size: number of vectors translated together; 4,096 by default.
          id_column, vector_column: columns of the gallery; None: found by their kind.
          on_bad: "quarantine" (the default) sets unusable vectors aside, at most one in a thousand,
            and writes them to ``quarantine.jsonl``; "raise" stops at the first.
          duplicates: "first" or "last" keeps that row of a repeated id; "raise" (the default)
            stops.
          in_place: for a store: add a second vector to each row (a column, or a named vector)
            instead of making a sibling with rows of its own, which is the default and faster.

        Returns:
          The plan, which is also in ``WORKDIR/plan``.

        Raises:
          UserError: there is already a plan; gallery, map or settings do not match each other, or
            contradict those that the directory remembers.
        """
        wanted = Wanted(
            order,
            traffic,
            budget_items,
            budget_money,
            target_quality,
            items_per_second,
            cost_per_1000,
            cost_per_core_hour,
            serve,
            seed,
        )
        wanted.check()
        folder = self.workdir / "plan"
        if folder.exists():
            raise UserError(f"{folder} exists already; nothing was overwritten")
        side = self._side(
            map,
            gallery,
            probe=probe,
            batch_size=batch_size,
            id_column=id_column,
            vector_column=vector_column,
            on_bad=on_bad,
            duplicates=duplicates,
            in_place=in_place,
        )
        with self._closing(side, gallery):
            return side.plan(wanted)

    def apply(
        self,
        map=None,
        gallery=None,
        *,
        reembed=None,
        batch_items: int = 4096,
        max_batches: int | None = None,
        unchecked: bool = False,
        part: str | None = None,
        engine: str | None = Engine.name,
        address: str | None = Engine.address,
        workers: int | None = Engine.workers,
        gpus_per_worker: float = Engine.gpus_per_worker,
        output: str | None = None,
        texts=Asking.texts,
        model: str | None = Asking.model,
        parallel: int | None = Asking.parallel,
        per_request: int = Asking.per_request,
        attempts: int = Asking.attempts,
        timeout: float = Asking.timeout,
        max_items: int | None = Asking.max_items,
        max_tokens: int | None = Asking.max_tokens,
        max_money: float | None = Asking.max_money,
        cost_per_1000: float | None = Asking.cost_per_1000,
        cost_per_million_tokens: float | None = Asking.cost_per_million_tokens,
        probe=None,
        batch_size: int | None = None,
        dtype: str | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
        on_bad: str | None = None,
        duplicates: str | None = None,
        in_place: bool | None = None,
    ):
        """Translate the gallery and re-embed the plan's items, from where the last run stopped.

        Without a plan, a plan of all items is made first.

        Args:
          map, gallery, probe, batch_size, id_column, vector_column, on_bad, duplicates, in_place:
            as in `plan`; remembered settings can be omitted.
          dtype: type in which the new gallery's vectors are stored, "float16", "float32", "int8"
            or "binary" (see `fct_jax.upgrade.galleries.stored`); None: the old one's.
          reembed: source of new vectors: an EmbeddingSet's directory; ``module:function``, or
            a function from ids (n,) to vectors (n, D), with None in place of missing ones; or
            the URL of an endpoint like OpenAI's ``/v1/embeddings``. None: only translate.
          batch_items: number of items that are re-embedded, checked and recorded together.
          max_batches: stop after this number of batches; None: go to the plan's end.
          unchecked: continue even if there are no known answers to check the map and new vectors.
          part: ``3/16``, to translate every 16th piece of the gallery from the third on; other
            processes translate the other parts, and the last of all finishes. ``auto`` takes the
            number from a SLURM array or a Kubernetes Indexed Job. See `fct_jax.upgrade.parts`.
          engine: "ray": translate on the workers of a Ray cluster, and, if ``reembed`` is a
            function, ask it there; each worker loads it once. What is published or recorded
            counts, so the same call resumes whatever is lost.
          address, workers, gpus_per_worker: settings of the engine; see `Engine`.
          output: URI of the new gallery in an object store (``s3://bucket/new``), for a Parquet
            gallery; None: ``WORKDIR/gallery``.
          texts, model: for an endpoint: the text that it embeds for each id, and its model; see
            `Asking`.
          parallel, per_request, attempts, timeout: settings for functions and endpoints; see
            `Asking`.
          max_items, max_tokens, max_money: limits on the total cost of re-embedding.
          cost_per_1000, cost_per_million_tokens: prices of items and tokens.

        Returns:
          The new-space gallery, ``WORKDIR/gallery``; for a store its sibling, which has no readers
          before `switch`; close it when you are done. With ``part``: the `Status` while pieces of
          other parts are missing.

        Raises:
          UserError: something does not match, before anything is written; a batch is faulty, before
            anything of it is written; a limit on spending is reached, after vectors that were paid
            for are written.
        """
        asking = Asking(
            texts,
            model,
            parallel,
            per_request,
            attempts,
            timeout,
            max_items,
            max_tokens,
            max_money,
            cost_per_1000,
            cost_per_million_tokens,
        )
        run = Run(
            reembed,
            asking,
            batch_items,
            max_batches,
            unchecked,
            None if part is None else Part.of(part),
            Engine(engine, address, workers, gpus_per_worker),
        )
        run.check()
        side = self._side(
            map,
            gallery,
            probe=probe,
            batch_size=batch_size,
            dtype=dtype,
            id_column=id_column,
            vector_column=vector_column,
            on_bad=on_bad,
            duplicates=duplicates,
            output=output,
            in_place=in_place,
        )
        with self._closing(side, gallery, at_end=False):
            if not side.in_parts and (part is not None or engine is not None):
                raise UserError("a store is upgraded by one process, without --part and --engine")
            return side.apply(run)

    def status(self, *, probe=None, recall_queries: int = RECALL_QUERIES) -> Status:
        """Return the progress of the upgrade; `apply` may be running meanwhile.

        Args:
          probe: another probe set than the remembered one, for measuring quality.
          recall_queries: for a store: number of its items with which the recall of its indexes is
            measured, against the store's own comparison with every row; 0: not measured.

        Raises:
          UserError: there is no upgrade in the directory.
        """
        if not self.workdir.is_dir():
            raise UserError(f"no upgrade in {self.workdir}")
        settings = merged(self.workdir, {})
        probe = named(probe) or settings.probe
        return side_of(settings.gallery).status(self.workdir, settings, probe, recall_queries)

    def rollback(self, to: int | None = None, *, map=None, gallery=None) -> int:
        """Return to the end of batch ``to``: items of later batches get translated vectors again.

        Translated vectors are computed again from the source, with the same map in the same blocks;
        new vectors are not kept: `apply` asks for them again.

        Args:
          to: number of the last batch to keep; 0: no item stays re-embedded. None, only for a
            store: readers are sent back to the old store, as by ``switch(back=True)``.
          map, gallery: as in `plan`; remembered settings can be omitted.

        Returns:
          The number of items that stay re-embedded.

        Raises:
          UserError: there is no such batch.
        """
        self._check_begun("roll back")
        side = self._side(map, gallery)
        with self._closing(side, gallery):
            return side.rollback(to)

    def switch(
        self, *, back: bool = False, calibration=None, leave: bool = False, map=None, gallery=None
    ) -> dict:
        """Point the readers of a store to the upgraded one, or back to the old one.

        Rows that the application has written meanwhile are transferred until a pass finds none;
        the new store is checked by a sample; the pointer is switched, unless somebody else has
        switched it since; and one more pass transfers the rows written in between. After a switch
        the same call can add or replace the calibration.

        Args:
          back: return readers to the previous store; rows stay where they are. Those that the
            application wrote to the new store are listed in ``written_by_app.jsonl``.
          calibration: folder of a `Calibration`, which readers find in the pointer.
          leave: go back even if the old store lacks rows that the application wrote to the new one.
          map, gallery: as in `plan`; remembered settings can be omitted.

        Returns:
          The pointer: {store, fingerprint, calibration, generation, previous}.

        Raises:
          UserError: the upgrade is not of a store, the store is not translated yet, rows differ,
            somebody else switches at the same time, or the old store lacks rows on the way back.
        """
        self._check_begun("switch")
        side = self._side(map, gallery)
        with self._closing(side, gallery):
            return side.switch(back, named(calibration), leave)

    def _check_begun(self, what: str) -> None:
        """Raise UserError if nothing is translated."""
        if not (self.workdir / "journal.jsonl").is_file():
            raise UserError(f"nothing to {what} in {self.workdir}: it is not translated yet")

    @contextlib.contextmanager
    def _closing(self, side: Side, given, at_end: bool = True):
        """Close, at a context's end, what this call opened; only on errors if not ``at_end``."""
        ours = given is None or isinstance(given, str | Path)
        try:
            yield
        except BaseException:
            if ours:
                side.close()
            raise
        if ours and at_end:
            side.close()

    def _side(self, map, gallery, **given) -> Side:
        """Open the map and the source that a call names or the directory remembers."""
        if map is not None and not isinstance(map, str | Path):
            self._object, map = map, None
        given = {**given, "map": map, "gallery": place_of(gallery)}
        settings = merged(self.workdir, given)
        # An object that an earlier call gave is at hand; a name is loaded.
        unnamed = map is None and self._object is not None
        for what, known in (("map", unnamed or settings.map), ("gallery", settings.gallery)):
            if not known:
                raise UserError(f"{self.workdir} knows no {what} yet; give {what}")
        kind = side_of(settings.gallery)
        if settings.dtype is not None and not kind.chooses_dtype:
            raise UserError(f"dtype={settings.dtype}: a store has the type of its own vectors")
        if settings.in_place and not kind.in_place:
            raise UserError("in_place is for stores; the new vectors of files make a new gallery")
        source = kind.open(gallery, settings)
        try:
            mapping = load_map(self._object if unnamed else settings.map)
            mapping = mapping.forward().for_dim(source.dim)
            # A map is identified by its fingerprint, wherever it is.
            settings = merged(self.workdir, {**given, "map_fingerprint": mapping.fingerprint})
            probe = open_probe(settings.probe, mapping)
        except BaseException:
            if source is not gallery and hasattr(source, "close"):
                source.close()
            raise
        return kind(self.workdir, Opened(settings, source, mapping, probe, unnamed))
