"""One upgrade of a gallery: planned, applied, watched and rolled back in its own directory."""

import contextlib
import dataclasses
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.galleries.base import Gallery, open_gallery
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.migration.planning import Plan, Wanted, make_plan, read_plan
from fct_jax.upgrade.migration.preflight import check_before, check_new_vectors
from fct_jax.upgrade.migration.probe import Probe, open_probe
from fct_jax.upgrade.migration.reading import Certificate, read_through, write_quarantine
from fct_jax.upgrade.migration.reembed import Asking, open_reembed
from fct_jax.upgrade.migration.reembedding import Reembedding
from fct_jax.upgrade.migration.settings import Settings, expanded, merged, named, remember
from fct_jax.upgrade.migration.status import Status, status_of
from fct_jax.upgrade.migration.steps import Migration, lock_of


@dataclasses.dataclass(frozen=True)
class _Opened:
    """Everything that the settings name, opened."""

    settings: Settings
    gallery: Gallery
    mapping: Map
    probe: Probe | None
    unnamed: bool  # the map was given as an object


class Upgrade:
    """An upgrade of a gallery from an old to a new embedding model.

    Its directory remembers map, gallery, probe and settings in ``upgrade.json``, so that the first
    call names them and later ones need not. Every call may be killed or interrupted at any moment;
    the same call goes on. The old gallery is never changed.

    Args:
      workdir: the upgrade's directory; it is made by the first call.

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
        serve: str = Wanted.serve,
        seed: int = Wanted.seed,
        probe=None,
        batch_size: int | None = None,
        id_column: str | None = None,
        vector_column: str | None = None,
        on_bad: str | None = None,
        duplicates: str | None = None,
    ) -> Plan:
        """Decide which items to re-embed, in which order, and forecast what it will bring.

        The gallery is read once, and certified for `apply`; not at all if it is translated already.

        Args:
          map: a Map, its directory, the run of a transformation, "identity" or ``module:name``.
          gallery: the old gallery, as of `open_gallery`.
          order: name of an order of re-embedding (`fct_jax.evaluate.orders.ORDERS`); None: by
            uncertainty where the map gives one.
          traffic: .npy with the fields "id" and "weight", how often each item is asked for.
          budget_items, budget_money, target_quality: how far to go; the smallest counts, None is
            no limit. ``target_quality`` is of the probe, by the forecast.
          items_per_second, cost_per_1000: speed and price of the new model, for times and costs.
          serve: way of serving that the forecast is made for (`fct_jax.upgrade.ways.WAYS`).
          seed: of a random order.
          probe: folder with queries that quality is measured by; see `Probe`.
          batch_size: vectors translated together; 4,096 if nobody says otherwise.
          id_column, vector_column: columns of the gallery; None: found by their kind.
          on_bad: "quarantine" (the default) sets unusable vectors aside, at most one in a thousand,
            and writes them to ``quarantine.jsonl``; "raise" stops at the first.
          duplicates: which row of a repeated id counts, "first" or "last"; "raise" (the default)
            stops there.

        Returns:
          The plan, which is also in ``WORKDIR/plan``.

        Raises:
          UserError: there is a plan already; gallery, map or settings do not fit each other, or
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
            serve,
            seed,
        )
        wanted.check()
        folder = self.workdir / "plan"
        if folder.exists():
            raise UserError(f"{folder} exists already; nothing was overwritten")
        opened = self._open(
            map,
            gallery,
            probe=probe,
            batch_size=batch_size,
            id_column=id_column,
            vector_column=vector_column,
            on_bad=on_bad,
            duplicates=duplicates,
        )
        guards.check_gallery_fits(opened.gallery, opened.mapping)
        with lock_of(self.workdir):
            _, lookup = guards.check_known_pairs(opened.gallery, opened.mapping)
            return self._planned(opened, wanted, lookup)

    def apply(
        self,
        map=None,
        gallery=None,
        *,
        reembed=None,
        batch_items: int = 4096,
        max_batches: int | None = None,
        unchecked: bool = False,
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
        id_column: str | None = None,
        vector_column: str | None = None,
        on_bad: str | None = None,
        duplicates: str | None = None,
    ) -> Gallery:
        """Translate the gallery and re-embed the plan's items, from where the last run stopped.

        Without a plan, one of all items is made first.

        Args:
          map, gallery, probe, batch_size, id_column, vector_column, on_bad, duplicates: as of
            `plan`; what the directory remembers need not be named.
          reembed: where new vectors come from: an EmbeddingSet's directory; ``module:function``, or
            a function from ids (n,) to vectors (n, D), None in place of those that cannot be; or
            the URL of an endpoint as of OpenAI's ``/v1/embeddings``. None: translate only.
          batch_items: items that are re-embedded, checked and recorded together.
          max_batches: stop after so many batches, to go on later; None: go to the plan's end.
          unchecked: go on also where there are no known answers to check map and new vectors by.
          texts, model: of an endpoint: what it embeds for each id, and by which model; see
            `Asking`.
          parallel, per_request, attempts, timeout: how functions and endpoints are asked.
          max_items, max_tokens, max_money: what re-embedding may cost in all.
          cost_per_1000, cost_per_million_tokens: prices of items and tokens.

        Returns:
          The new-space gallery, ``WORKDIR/gallery``.

        Raises:
          UserError: something does not fit, before anything is written; a batch is unsound, before
            anything of it is written; a cap on spending is reached, after what was paid for is
            written.
        """
        if batch_items < 1:
            raise UserError(f"batch_items must be 1 or more, not {batch_items}")
        if max_batches is not None and max_batches < 0:
            raise UserError(f"max_batches must be 0 or more, not {max_batches}")
        opened = self._open(
            map,
            gallery,
            probe=probe,
            batch_size=batch_size,
            id_column=id_column,
            vector_column=vector_column,
            on_bad=on_bad,
            duplicates=duplicates,
        )
        source, mapping, settings = opened.gallery, opened.mapping, opened.settings
        if self.workdir.resolve().is_relative_to(source.path.resolve()):
            raise UserError(
                f"{self.workdir} is in the gallery, which is never changed; give another directory"
            )
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
        new = None if reembed is None else open_reembed(reembed, asking)
        with lock_of(self.workdir):
            work = Migration(self.workdir, source, mapping, settings.batch_size)
            if new is None and work.progress.stops:
                raise UserError(
                    f"{self.workdir} has {work.progress.items} items re-embedded; "
                    "say where new vectors come from (reembed) to go on"
                )
            lookup = None
            if work.progress.begin is None:
                lookup = check_before(source, mapping, new, opened.probe, unchecked=unchecked)
            elif new is not None and not work.progress.stops:
                check_new_vectors(source, mapping, new)  # until now it was only translated
            if new is not None and not (self.workdir / "plan").is_dir():
                self._planned(opened, Wanted(), lookup)
            plan = None
            if (self.workdir / "plan").is_dir():
                plan = read_plan(self.workdir / "plan", source, mapping)
            if new is not None:
                new.check_some(plan.ids)
            certificate = None
            if not work.progress.ready:
                certificate = self._certified(opened, plan, lookup)
            if work.progress.begin is None:
                self._remember(opened)
                work.begin(new.meta if new else {})
            with contextlib.closing(work.target):
                work.translate(certificate)
                if new is not None:
                    Reembedding(work, plan, new, unchecked).run(batch_items, max_batches)
        return open_gallery(
            self.workdir / "gallery",
            id_column=settings.id_column,
            vector_column=settings.vector_column,
            unfinished=True,
        )

    def status(self, *, probe=None) -> Status:
        """Return how far the upgrade has come; it may be under way meanwhile.

        Args:
          probe: another probe set than the remembered one, to measure quality by.

        Raises:
          UserError: there is no upgrade in the directory.
        """
        if not self.workdir.is_dir():
            raise UserError(f"no upgrade in {self.workdir}")
        settings = merged(self.workdir, {})
        return status_of(self.workdir, settings, named(probe) or settings.probe)

    def rollback(self, to: int, *, map=None, gallery=None) -> int:
        """Return to the end of batch ``to``: items of later batches get translated vectors again.

        Translated vectors are computed again from the source, with the same map in the same blocks;
        new vectors are not kept: they are asked for again when `apply` goes on.

        Args:
          to: number of a batch; 0: nothing stays re-embedded.
          map, gallery: as of `plan`; what the directory remembers need not be named.

        Returns:
          The number of items that stay re-embedded.

        Raises:
          UserError: there is no such batch.
        """
        nothing = f"nothing to roll back in {self.workdir}"
        if not (self.workdir / "journal.jsonl").is_file():
            raise UserError(f"{nothing}: the gallery is not translated yet")
        opened = self._open(map, gallery)
        with lock_of(self.workdir):
            work = Migration(
                self.workdir, opened.gallery, opened.mapping, opened.settings.batch_size
            )
            if not work.progress.ready:
                raise UserError(f"{nothing}: the gallery is not translated yet")
            if work.progress.plan is None:
                raise UserError(f"{nothing}: no item is re-embedded")
            plan = work.followed()
            with contextlib.closing(work.target):
                work.target.open(opened.mapping.dim_out)
                if work.progress.rolling_back is not None:
                    work.roll_back(plan, work.progress.rolling_back["to"])
                if not 0 <= to <= len(work.progress.stops):
                    raise UserError(
                        f"give the number of a batch to roll back to, "
                        f"0 … {len(work.progress.stops)}, not {to}"
                    )
                work.roll_back(plan, to)
            left = work.progress.reembedded
        console.print(
            f"{self.workdir}: back at batch {to}; {left:,} of {len(plan):,} items are re-embedded",
            soft_wrap=True,
        )
        return left

    def _planned(self, opened: _Opened, wanted: Wanted, lookup) -> Plan:
        """Make the plan, of what a finished translation knows or of a pass over the gallery."""
        settings, gallery, mapping = opened.settings, opened.gallery, opened.mapping
        work = Migration(self.workdir, gallery, mapping, settings.batch_size)
        certificate, uncertainty, bad = work.certificate, work.uncertainty(), work.progress.bad
        if uncertainty is None or not certificate.holds(gallery) or lookup is not None:
            certificate, uncertainty, bad = read_through(
                gallery, mapping, settings.batch_size, lookup
            )
        folder = self.workdir / "plan"
        made = make_plan(
            folder, gallery, mapping, opened.probe, wanted, certificate, uncertainty, bad
        )
        write_quarantine(self.workdir, gallery)
        self._remember(opened)
        return made

    def _certified(self, opened: _Opened, plan: Plan | None, lookup) -> Certificate | None:
        """Return what the translating pass must find; None if it is the first to read everything.

        The gallery is read here only if files were changed since the plan was made, or vectors
        are to be looked for in all rows before anything is written.
        """
        certificate = None if plan is None else plan.certificate
        if certificate is not None and certificate.holds(opened.gallery):
            return certificate
        if certificate is None and lookup is None:
            return None
        settings = opened.settings
        found, _, _ = read_through(opened.gallery, opened.mapping, settings.batch_size, lookup)
        if certificate is not None and found.content != certificate.content:
            raise UserError(
                f"{opened.gallery.name} has other vectors than when it was planned; "
                f"move {self.workdir}/plan away, and plan again"
            )
        return found

    def _open(self, map, gallery, **given) -> _Opened:
        """Open what a call names, or else the directory remembers."""
        if map is not None and not isinstance(map, str | Path):
            self._object, map = map, None
        given = {**given, "map": map, "gallery": getattr(gallery, "path", gallery)}
        settings = merged(self.workdir, given)
        # An object that an earlier call gave is at hand; a name is loaded.
        unnamed = map is None and self._object is not None
        for what, known in (("map", unnamed or settings.map), ("gallery", settings.gallery)):
            if not known:
                raise UserError(f"{self.workdir} knows no {what} yet; give {what}")
        if not isinstance(gallery, Gallery):
            gallery = open_gallery(settings.gallery, **settings.open_options())
        mapping = load_map(self._object if unnamed else settings.map)
        mapping = mapping.forward().for_dim(gallery.dim)
        # A map is the same wherever it lies.
        settings = merged(self.workdir, {**given, "map_fingerprint": mapping.fingerprint})
        probe = open_probe(settings.probe, mapping)
        return _Opened(settings, gallery, mapping, probe, unnamed)

    def _remember(self, opened: _Opened) -> None:
        """Write the settings; a map that was given as an object is saved beside them."""
        settings, mapping = opened.settings, opened.mapping
        if opened.unnamed:
            where = self.workdir / f"map-{mapping.fingerprint}"
            if not where.exists():
                mapping.save(where)
            settings = dataclasses.replace(settings, map=named(where))
        remember(self.workdir, settings)
