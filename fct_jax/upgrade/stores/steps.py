"""The steps of a store's upgrade, each recorded in the upgrade's journal when it is done.

    begin        source, sibling and map of the upgrade
    copied       the last id that is translated and written, in bulk
    translated   all rows that existed at that time are translated
    caught_up    rows that the application wrote in the meantime are transferred
    plan, pending, batch, …   re-embedded items, as in `Batches`
    indexed      the sibling has its vector index
    switched, undone          the store that readers follow

After a kill between a step and its record the step is repeated; every step can be repeated.
"""

import json
import shutil
import time

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.runtime.progress import Bar, console
from fct_jax.storage.files import new_directory, write_synced
from fct_jax.storage.ids import first_ten
from fct_jax.upgrade.migration.batches import Batches
from fct_jax.upgrade.migration.journal import Progress
from fct_jax.upgrade.migration.settings import Settings
from fct_jax.upgrade.stores.base import NEW, TRANSLATED, Batch, Store
from fct_jax.upgrade.stores.migrate import catch_up, copied, delete_ours
from fct_jax.upgrade.stores.planning import StorePlan
from fct_jax.upgrade.stores.screen import Screen

_CHECKED = 256  # rows that are checked before readers are switched to the sibling
_BLOCK = 1 << 16  # ids of a plan that are processed at once
_ALIKE = 0.999  # least cosine of a row and the map's output, because halfvec rounds


class StoreProgress(Progress):
    """The progress that a store's journal records.

    Attributes:
      copied: the latest record of the copy, or None.
      caught: the latest record of catching up, or None.
      indexed: whether the sibling has its index.
      switched: whether the latest switch was to the sibling.
    """

    def __init__(self, records: list[dict]):
        self.copied = self.caught = None
        self.indexed = self.switched = False
        super().__init__(records)

    def _copied(self, record):
        self.copied, self.rows = record, record["rows"]
        self.bad += record.get("bad", [])

    def _caught_up(self, record):
        self.caught = record
        self.bad = record.get("bad", self.bad)

    def _indexed(self, record):
        self.indexed = True

    def _switched(self, record):
        self.switched = True

    def _undone(self, record):
        self.switched = False


class StoreMigration(Batches):
    """The steps from a store to its sibling in the new model's space."""

    def __init__(self, workdir, source: Store, mapping, settings: Settings):
        super().__init__(workdir, mapping, StoreProgress)
        self.source, self.batch_size, self.target = source, settings.batch_size, None
        self.in_place = settings.in_place
        bad = {one: reason for one, reason in self.progress.bad}
        self.screen = Screen(source, settings.on_bad, bad)
        begin = self.progress.begin
        if begin is not None:
            self._check_same(begin)
            self.target = self._sibling(begin["meta"])

    def begin(self, new_meta: dict) -> None:
        """Make the sibling and record the upgrade; ``new_meta`` describes re-embedded vectors."""
        described = {**self.map.description.get("new_meta", {}), **new_meta}
        fingerprint = self.map.new_fingerprint or new_meta.get("fingerprint")
        meta = {
            "fingerprint": fingerprint or self.map.fingerprint,
            **{k: described[k] for k in ("model", "prefix") if k in described},
            "transformation": self.map.fingerprint,
            "old_fingerprint": self.map.old_fingerprint or self.source.meta.get("fingerprint"),
            "dimension": self.map.dim_out,
            **({"in_place": True} if self.in_place else {}),
        }
        self._check_metric()
        self.target = self._sibling(meta)
        self.record("begin", **self._identity(), target=str(self.target.uri), meta=meta)

    def translate(self) -> None:
        """Map and copy every row after the last finished one, in bulk and by ascending id."""
        done = self.progress
        if done.ready:
            return
        begun = time.monotonic()
        steps = copied(self.source, self.target, self._mapped, self.screen, done.copied)
        with Bar("translating", self.source.count(), "vectors", done.rows) as bar:
            for step in steps:
                before, now = done.rows, time.monotonic()
                seconds, begun = round(now - begun, 3), now
                self.record("copied", **step, start=before, stop=step["rows"], seconds=seconds)
                bar.advance(done.rows - before)
        self.screen.write(self.workdir / "quarantine.jsonl")
        self.record("translated", rows=done.rows)

    def catch_up(self) -> None:
        """Transfer rows that the application wrote meanwhile. Raises UserError if it never ends."""
        known = dict(self.screen.bad)
        found = catch_up(
            self.source, self.target, self._mapped, screen=self.screen, before=self._ask_again
        )
        bad = [list(entry) for entry in self.screen.bad.items()]
        some = {} if self.screen.bad == known else {"bad": bad}
        self.record("caught_up", **vars(found), **some)
        self.screen.write(self.workdir / "quarantine.jsonl")
        if found.written or found.deleted:
            console.print(
                f"caught up: {found.written:,} rows written and {found.deleted:,} deleted since"
            )
        if not found.settled:
            raise UserError(
                f"{self.source.uri} still changes after {found.passes} passes; give the same "
                "command again when the application writes less"
            )

    def _ask_again(self, rows: Batch) -> None:
        """Record which re-embedded items have changed, before their new vectors are replaced.

        These items count as failed, so that the next run with a source of new vectors requests
        them.
        """
        done = self.progress
        if not done.items:
            return
        states = self.target.states(rows.ids)
        stale = [one for one, (version, seen) in states.items() if version == NEW and seen]
        if not stale:
            return
        ids, places = self.followed().ids, []
        for start in range(0, done.items, _BLOCK):
            block = ids[start : min(start + _BLOCK, done.items)]
            places += (start + np.flatnonzero(np.isin(block, stale))).tolist()
        at = {"batch": len(done.stops) + 1, "start": done.items, "stop": done.items}
        self.record("batch", **at, failed=places, seconds=0.0)
        console.print(
            f"{first_ten(stale)} changed after being re-embedded, and are translated again; "
            "the next apply with --reembed asks for their new vectors"
        )

    def index(self) -> None:
        """Build the sibling's vector index, once."""
        if not self.progress.indexed:
            console.print(f"building the index of {self.target.uri}", markup=False, soft_wrap=True)
            self.target.build_index()
            self.record("indexed")

    def check(self) -> None:
        """Catch up; raise UserError unless a sample of the sibling agrees with the map's output.

        The sample is drawn before catching up, because new rows may appear at any time.
        """
        drawn = self.source.sample(_CHECKED, seed=1).ids
        self.catch_up()
        rows, _ = self.screen.take(self.source.rows_of(drawn))
        states = self.target.states(rows.ids)
        keys = rows.ids.tolist()
        missing = [one for one in keys if one not in states]
        if missing:
            raise UserError(f"{self.target.uri} lacks {first_ten(missing)} of {self.source.uri}")
        ours = [
            states[one] == (TRANSLATED, int(t)) for one, t in zip(keys, rows.tokens, strict=True)
        ]
        rows = rows.take(np.array(ours, bool))
        if len(rows):
            _, have = self.target.get(rows.ids)
            want = unit_rows(self._mapped(rows.vectors))
            alike = np.einsum("nd,nd->n", unit_rows(have), want)
            if (alike < _ALIKE).any():
                wrong = rows.ids[alike < _ALIKE]
                raise UserError(
                    f"{self.target.uri} holds other vectors than the map gives for "
                    f"{first_ten(wrong)}"
                )

    def check_back(self, leave: bool) -> None:
        """List the rows that the application wrote to the sibling, in ``written_by_app.jsonl``.

        The old model's vectors of these rows are not known here, so they are not written to the
        source. Raises UserError if the source lacks some of them, unless ``leave``.
        """
        path, ids = self.workdir / "written_by_app.jsonl", np.sort(self.target.of_app())
        if not len(ids):
            path.unlink(missing_ok=True)
            return
        there = np.zeros(len(ids), bool)
        for start in range(0, len(ids), self.source.batch_rows):
            block = slice(start, start + self.source.batch_rows)
            there[block] = self.source.has(ids[block])
        rows = zip(ids.tolist(), there.tolist(), strict=True)
        lines = [json.dumps({"id": one, "in_old_store": old}) + "\n" for one, old in rows]
        write_synced(path, "".join(lines).encode())
        told = (
            f"{len(ids):,} rows of {self.target.uri} were written there by the application, of "
            f"which {self.source.uri} has {there.sum():,}, perhaps in an older form"
        )
        if not there.all() and not leave:
            raise UserError(
                f"{told}, and lacks {first_ten(ids[~there])} (all in {path}); write these to the "
                "old store, or go back without them: switch --back --leave"
            )
        console.print(f"{told}; see {path}", markup=False, soft_wrap=True)

    def _mapped(self, vectors: np.ndarray) -> np.ndarray:
        made, _ = self.map.transform(vectors, self.batch_size)
        if not np.isfinite(made).all():
            raise UserError("the map gives NaN or infinity for some vectors")
        return self.scaled(made)

    def reopen(self) -> None:
        pass  # a store is always open

    def scaled(self, vectors):
        # Given unit vectors, stores that compare by inner product or distance rank as by cosine.
        scales = self.map.metric == "cosine" and not self.map.unit_output
        return unit_rows(vectors) if scales else vectors

    def put(self, plan, places, vectors):
        taken = np.ones(len(places), bool)
        for start in range(0, len(places), self.target.batch_rows):
            part = slice(start, start + self.target.batch_rows)
            taken[part] = self._put(plan.ids[places[part]], vectors[part])
        return taken

    def _put(self, ids, vectors) -> np.ndarray:
        """Write the new vectors of rows that have not changed since they were translated.

        Returns (n,) bool: False if a row has changed, so that its vector must be requested again
        after catching up. Rows that are gone or belong to the application need no vector.
        """
        place = {one: number for number, one in enumerate(ids.tolist())}
        rows, states = self.source.rows_of(ids), self.target.states(ids)
        fresh = np.zeros(len(rows), bool)
        for number, (one, token) in enumerate(zip(rows.ids.tolist(), rows.tokens, strict=True)):
            seen = states[one][1] if one in states else None
            # A row without a usable vector could not be translated, so the sibling lacks it.
            fresh[number] = seen == int(token) or (one not in states and one in self.screen.bad)
        again = [
            one
            for one, ok in zip(rows.ids.tolist(), fresh, strict=True)
            if not ok and (one not in states or states[one][1] is not None)
        ]
        rows = rows.take(fresh)
        if len(rows):
            new = vectors[[place[one] for one in rows.ids.tolist()]]
            self.target.write(rows.ids, new, NEW, rows.tokens, rows.extra)
        taken = np.ones(len(ids), bool)
        taken[[place[one] for one in again]] = False
        return taken

    def pairs(self, plan, places):
        ids = plan.ids[places]
        parts = []
        for store in (self.source, self.target):
            there, vectors = store.get(ids)
            whole = np.zeros((len(ids), store.dim), np.float32)
            whole[there] = vectors
            parts.append(whole)
        parts[0][~parts[1].any(axis=1)] = 0  # these items have no translated vector
        return parts[0], parts[1]

    def keep_plan(self, plan) -> None:
        folder = self.workdir / "followed"
        shutil.rmtree(folder, ignore_errors=True)
        with new_directory(folder) as partial:
            shutil.copytree(self.workdir / "plan" / "ids", partial, dirs_exist_ok=True)

    def followed(self) -> StorePlan:
        return StorePlan.of(self.workdir / "followed", self.source.id_kind, {})

    def roll_back(self, plan, to):
        places = self.leaving(to)
        if self.progress.rolling_back is None:
            self.record("rollback", to=to)
        with Bar("rolling back", len(places), "vectors") as bar:
            for start in range(0, len(places), self.target.batch_rows):
                ids = plan.ids[places[start : start + self.target.batch_rows]]
                rows, bad = self.screen.take(self.source.rows_of(ids))
                if bad:
                    delete_ours(self.target, [one for one, _ in bad])
                if len(rows):
                    made = self._mapped(rows.vectors)
                    self.target.write(
                        rows.ids, made, TRANSLATED, rows.tokens, rows.extra, over=True
                    )
                bar.advance(len(ids))
        (self.workdir / "pending.npy").unlink(missing_ok=True)
        self.record("rolled_back", to=to)

    def _sibling(self, meta: dict) -> Store:
        made = self.source.sibling(self.map.dim_out, meta)
        theirs = made.meta.get("transformation")
        if theirs != self.map.fingerprint:
            raise UserError(
                f"{made.uri} already exists, made by another map ({theirs}, not "
                f"{self.map.fingerprint}); delete it, or fit the map for a model of its own "
                "fingerprint"
            )
        return made

    def _identity(self) -> dict:
        """Return the settings that must not change when the upgrade resumes."""
        return {
            "source": str(self.source.uri),
            "map": self.map.fingerprint,
            "batch_size": self.batch_size,
        }

    def _check_same(self, begin: dict) -> None:
        ours = self._identity()
        differ = [
            f"{k}: {begin.get(k)!r} there, {v!r} now" for k, v in ours.items() if begin.get(k) != v
        ]
        if differ:
            raise UserError(
                f"{self.workdir} holds an upgrade of another store, map or batch size "
                f"({'; '.join(differ)}); choose another directory"
            )

    def _check_metric(self) -> None:
        """Raise UserError if the store would rank the new vectors by another metric."""
        unit = self.map.unit_output or self.map.metric == "cosine"
        if not unit and self.map.metric != self.source.metric:
            raise UserError(
                f"the map's vectors are compared by {self.map.metric}, but {self.source.uri} "
                f"compares by {self.source.metric}; fit the map with metric={self.source.metric}"
            )
