"""Upgrades of stores: fill, index and check a sibling, then switch readers to it."""

from fct_jax.errors import UserError
from fct_jax.runtime.progress import console
from fct_jax.upgrade.checks import guards
from fct_jax.upgrade.migration.planning import Wanted
from fct_jax.upgrade.migration.preflight import check_before, check_new_vectors
from fct_jax.upgrade.migration.reembed import NewVectors, open_reembed
from fct_jax.upgrade.migration.reembedding import Reembedding
from fct_jax.upgrade.migration.sides import Run, Side
from fct_jax.upgrade.migration.status import state_of
from fct_jax.upgrade.migration.steps import lock_of
from fct_jax.upgrade.stores import Store, open_store
from fct_jax.upgrade.stores.affine import StoreCalibration
from fct_jax.upgrade.stores.migrate import one_line, switch_to
from fct_jax.upgrade.stores.planning import StorePlan, make_store_plan, read_store_plan
from fct_jax.upgrade.stores.samples import Drawn
from fct_jax.upgrade.stores.screen import Screen
from fct_jax.upgrade.stores.steps import StoreMigration
from fct_jax.upgrade.stores.watching import status_of_store

_FIRST = 256  # first items of a plan, which the sample includes for the known-answer test
_BLOCK = 1 << 16


class StoreSide(Side):
    """A store, whose rows the application may change at any time; its upgrade makes a sibling."""

    in_place = True

    @staticmethod
    def open(where, settings):
        if settings.id_column or settings.vector_column:
            raise UserError(
                f"{settings.gallery}: a store's columns are named in its URI, as in "
                "?id=NAME&vector=NAME"
            )
        return where if isinstance(where, Store) else open_store(settings.gallery)

    def close(self):
        self.opened.source.close()

    @staticmethod
    def status(workdir, settings, probe, queries):
        return status_of_store(workdir, settings, probe, queries)

    def plan(self, wanted: Wanted) -> StorePlan:
        with lock_of(self.workdir), one_line(self.opened.source):
            drawn = self._drawn()
            guards.check_gallery_fits(drawn, self.opened.mapping)
            _, lookup = guards.check_known_pairs(drawn, self.opened.mapping)
            _look(lookup, drawn)
            return self._planned(wanted, drawn)

    def apply(self, run: Run) -> Store:
        opened = self.opened
        source, mapping = opened.source, opened.mapping
        new = None if run.reembed is None else open_reembed(run.reembed, run.asking)
        with lock_of(self.workdir), one_line(source):
            work, plan = self._work(), self._plan()
            if work.progress.begin is None:
                drawn = self._drawn(new, plan)
                _look(check_before(drawn, mapping, new, opened.probe, run.unchecked), drawn)
                if new is not None and plan is None:
                    plan = self._planned(Wanted(), drawn)
                opened.remember(self.workdir)
                work.begin(new.meta if new else {})
            elif new is not None and not work.progress.stops:
                drawn = self._drawn(new, plan)
                check_new_vectors(drawn, mapping, new)  # until now rows were only translated
                plan = plan or self._planned(Wanted(), drawn)
            if new is not None:
                _check_some(new, plan)
            work.translate()
            work.catch_up()
            if new is not None:
                Reembedding(work, plan, new, run.unchecked).run(run.batch_items, run.max_batches)
            # The index comes last, because writing to an indexed table is many times slower.
            work.index()
            work.catch_up()
            state = state_of(work.progress, None if plan is None else len(plan))
            work.target.meta = {**work.target.meta, "state": state}
            return work.target

    def rollback(self, to):
        if to is None:
            self.switch(True, None, False)
            return self._work().progress.reembedded
        with lock_of(self.workdir), one_line(self.opened.source):
            return self._translated().return_to(to)

    def switch(self, back, calibration, leave):
        source = self.opened.source
        if calibration is not None:
            StoreCalibration(calibration)  # check that readers can open it
        with lock_of(self.workdir), one_line(source):
            work, pointer = self._translated(), source.pointer()
            if back:
                return self._back(work, pointer, leave)
            work.index()
            work.check()
            switch_to(pointer, work.target, calibration)
            work.record("switched", generation=pointer.current()["generation"])
            work.catch_up()
            now = pointer.current()
        _say(now)
        return now

    def _back(self, work: StoreMigration, pointer, leave: bool) -> dict:
        now = pointer.current()
        if now["store"] != str(work.target.uri):
            raise UserError(
                f"nothing to undo: readers follow {now['store']}, not {work.target.uri}"
            )
        work.check_back(leave)
        now = pointer.switch(now["previous"], now["generation"])
        work.record("undone", generation=now["generation"])
        _say(now)
        return now

    def _work(self) -> StoreMigration:
        opened = self.opened
        return StoreMigration(self.workdir, opened.source, opened.mapping, opened.settings)

    def _translated(self) -> StoreMigration:
        work = self._work()
        if not work.progress.ready:
            raise UserError(
                f"{self.workdir}: {self.opened.source.uri} is not translated yet; apply first"
            )
        return work

    def _plan(self) -> StorePlan | None:
        folder = self.workdir / "plan"
        if not folder.is_dir():
            return None
        return read_store_plan(folder, self.opened.source, self.opened.mapping)

    def _drawn(self, new: NewVectors | None = None, plan: StorePlan | None = None) -> Drawn:
        """Draw a sample that includes the items with known answers."""
        mapping, probe, also = self.opened.mapping, self.opened.probe, []
        if mapping.known is not None:
            also.append(mapping.known.ids)
        if probe is not None:
            also.append(probe.ids)
        if new is not None and new.known is not None:
            also.append(new.known[:_FIRST])
        if plan is not None:
            also.append(plan.ids[:_FIRST])
        drawn = Drawn(self.opened.source, also=also)
        if not len(drawn):
            raise UserError(f"{self.opened.source.uri} holds no vectors yet")
        return drawn

    def _planned(self, wanted: Wanted, drawn: Drawn) -> StorePlan:
        opened = self.opened
        screen = Screen(opened.source, opened.settings.on_bad)
        folder, what = self.workdir / "plan", (opened.source, opened.mapping)
        made = make_store_plan(folder, *what, drawn, opened.probe, wanted, screen)
        screen.write(self.workdir / "quarantine.jsonl")
        opened.remember(self.workdir)
        return made


def _look(lookup, drawn: Drawn) -> None:
    """Look for the expected vectors in a sample; raises UserError if they are missing."""
    if lookup is not None:
        vectors = drawn.read(0, len(drawn))
        lookup.take(guards.without(vectors, guards.sound(vectors)))
        lookup.finish()


def _check_some(new: NewVectors, plan: StorePlan) -> None:
    """Raise UserError if there is no new vector for any item of a plan."""
    for start in range(0, len(plan), _BLOCK):
        if new.has(plan.ids[start : start + _BLOCK]).any():
            return
    new.check_some(plan.ids[:_BLOCK])


def _say(pointer: dict) -> None:
    console.print(
        f"readers follow {pointer['store']}, model {pointer['fingerprint']}, "
        f"generation {pointer['generation']}",
        markup=False,
        soft_wrap=True,
    )
