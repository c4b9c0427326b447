"""Upgrades of galleries in files, which are translated into a new gallery."""

import contextlib
import dataclasses

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import is_import_name
from fct_jax.runtime.progress import console
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.galleries.base import TRANSLATED, Gallery, open_gallery
from fct_jax.upgrade.migration.estimate import estimated
from fct_jax.upgrade.migration.planning import Plan, Wanted, make_plan, read_plan
from fct_jax.upgrade.migration.preflight import check_before, check_new_vectors
from fct_jax.upgrade.migration.reading import Certificate, read_through, write_quarantine
from fct_jax.upgrade.migration.reembed import open_reembed
from fct_jax.upgrade.migration.reembedding import Reembedding
from fct_jax.upgrade.migration.sides import Run, Side
from fct_jax.upgrade.migration.status import status_of
from fct_jax.upgrade.migration.steps import lock_of
from fct_jax.upgrade.parts.engines import Workers
from fct_jax.upgrade.parts.running import Running, migration_of


class GallerySide(Side):
    """A gallery of any form; its upgraded copy is ``WORKDIR/gallery``."""

    in_parts = True
    chooses_dtype = True

    @staticmethod
    def open(where, settings):
        if isinstance(where, Gallery):
            return where
        return open_gallery(settings.gallery, **settings.open_options())

    @staticmethod
    def status(workdir, settings, probe, queries):
        return status_of(workdir, settings, probe)

    def switch(self, back, calibration, leave):
        raise UserError(
            f"{self.workdir} upgrades files, which have no pointer to switch; "
            f"readers open {self.workdir}/gallery instead"
        )

    def plan(self, wanted: Wanted) -> Plan:
        gallery, mapping = self.opened.source, self.opened.mapping
        guards.check_gallery_fits(gallery, mapping)
        with lock_of(self.workdir):
            _, lookup = guards.check_known_pairs(gallery, mapping)
            made = self._planned(wanted, lookup)
            size = self.opened.settings.batch_size
            estimated(gallery, mapping, size, len(made), wanted).show()
            return made

    def apply(self, run: Run) -> Gallery:
        opened = self.opened
        source, settings = opened.source, opened.settings
        if self.workdir.resolve().is_relative_to(source.path.resolve()):
            raise UserError(
                f"{self.workdir} is inside the gallery, which is never changed; give another "
                "directory"
            )
        with run.engine.opened() as workers:
            new = None if run.reembed is None else open_reembed(*_asked(run, workers))
            in_parts, checked = Running(self.workdir, opened), False
            wanted = run.part is not None or workers is not None or settings.output
            if (wanted or in_parts.begun) and not in_parts.is_over():
                checked = not in_parts.begun
                if not self._translated(in_parts, run, workers, new):
                    return status_of(self.workdir, settings, None)
            if run.part is None:  # a part has nothing more to do
                self._one_process(run, new, checked)
        made = open_gallery(
            settings.output or self.workdir / "gallery",
            id_column=settings.id_column,
            vector_column=settings.vector_column,
            unfinished=True,
        )
        if made.searched and not made.stored_as.exact:
            self._tell_without_vector(made)
        return made

    def _tell_without_vector(self, made: Gallery) -> None:
        """Tell how many rows have no vector, if their codes do not show it."""
        rows = [row for row, _ in migration_of(self.workdir, self.opened).progress.bad]
        count = int((made.versions[rows] == TRANSLATED).sum())
        if count:
            console.print(
                f"{count:,} rows have no usable vector, but {made.stored_as.name} codes, which a "
                f"search may find: remove their ids, which are in {self.workdir}/quarantine.jsonl",
                soft_wrap=True,
            )

    def _one_process(self, run: Run, new, checked: bool) -> None:
        """Translate what is not translated, and re-embed; ``new`` has been ``checked`` or not."""
        opened = self.opened
        source, mapping = opened.source, opened.mapping
        with lock_of(self.workdir):
            work = migration_of(self.workdir, opened)
            if new is None and work.progress.stops:
                raise UserError(
                    f"{self.workdir} has {work.progress.items} re-embedded items; "
                    "name the source of new vectors (reembed) to continue"
                )
            lookup = None
            if work.progress.begin is None:
                lookup = check_before(source, mapping, new, opened.probe, unchecked=run.unchecked)
            elif new is not None and not work.progress.stops and not checked:
                check_new_vectors(source, mapping, new)  # until now it was only translated
            if new is not None and not (self.workdir / "plan").is_dir():
                self._planned(Wanted(), lookup)
            plan = None
            if (self.workdir / "plan").is_dir():
                plan = read_plan(self.workdir / "plan", source, mapping)
            if new is not None:
                new.check_some(plan.ids)
            certificate = None
            if not work.progress.ready:
                certificate = self._certified(plan, lookup)
            if work.progress.begin is None:
                opened.remember(self.workdir)
                work.begin(new.meta if new else {})
            with contextlib.closing(work.target):
                work.translate(certificate)
                if new is not None:
                    again = Reembedding(work, plan, new, run.unchecked)
                    again.run(run.batch_items, run.max_batches)

    def _translated(self, in_parts: Running, run: Run, workers: Workers | None, new) -> bool:
        """Translate in pieces; return whether the gallery is translated."""
        opened = self.opened
        source, mapping = opened.source, opened.mapping

        def check(plan: Plan | None) -> Certificate | None:
            lookup = check_before(source, mapping, new, opened.probe, unchecked=run.unchecked)
            return self._certified(plan, lookup)

        plan = None
        if (self.workdir / "plan").is_dir():
            plan = read_plan(self.workdir / "plan", source, mapping)
        if not in_parts.begin(plan, check):
            return True
        if run.part is not None:
            return in_parts.run(run.part)
        return in_parts.finish(workers, new.meta if new else {})

    def rollback(self, to):
        if to is None:
            raise UserError(
                "give the number of the batch to roll back to (--to); 0 goes back to the start"
            )
        opened = self.opened
        with lock_of(self.workdir):
            work = migration_of(self.workdir, opened)
            if not work.progress.ready:
                raise UserError(f"nothing to roll back in {self.workdir}: it is not translated yet")
            with contextlib.closing(work.target):
                return work.return_to(to)

    def _planned(self, wanted: Wanted, lookup) -> Plan:
        """Make the plan from a finished translation's data, or from a pass over the gallery."""
        opened = self.opened
        settings, gallery, mapping = opened.settings, opened.source, opened.mapping
        work = migration_of(self.workdir, opened)
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
        opened.remember(self.workdir)
        return made

    def _certified(self, plan: Plan | None, lookup) -> Certificate | None:
        """Return the certificate that the translating pass must confirm; None if it reads first.

        The gallery is read here only if files were changed since the plan was made, or if all rows
        must be searched for some vectors before anything is written.
        """
        opened = self.opened
        certificate = None if plan is None else plan.certificate
        if certificate is not None and certificate.holds(opened.source):
            return certificate
        if certificate is None and lookup is None:
            return None
        settings = opened.settings
        found, _, _ = read_through(opened.source, None, settings.batch_size, lookup)
        if certificate is not None and found.content != certificate.content:
            raise UserError(
                f"the vectors of {opened.source.name} have changed since the plan was made; "
                f"move {self.workdir}/plan away, and plan again"
            )
        return found


def _asked(run: Run, workers: Workers | None) -> tuple:
    """Return the source of new vectors, a function on its workers, and the settings for asking."""
    named = isinstance(run.reembed, str) and is_import_name(run.reembed)
    if workers is None or not (callable(run.reembed) or named):
        return run.reembed, run.asking
    function, count = workers.function(run.reembed)
    return function, dataclasses.replace(run.asking, parallel=run.asking.parallel or count)
