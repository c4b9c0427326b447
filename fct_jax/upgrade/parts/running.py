"""Translating a gallery in pieces: one part of them, what is left of them, or all on an engine."""

import contextlib
import time
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.progress import Bar, console
from fct_jax.storage.files import Lock
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.migration.journal import Journal, Progress
from fct_jax.upgrade.migration.planning import Plan
from fct_jax.upgrade.migration.reading import Certificate
from fct_jax.upgrade.migration.settings import merged
from fct_jax.upgrade.migration.sides import Opened
from fct_jax.upgrade.migration.steps import Migration, lock_of
from fct_jax.upgrade.parts.bucket import place_for
from fct_jax.upgrade.parts.engines import Workers
from fct_jax.upgrade.parts.finishing import Finishing
from fct_jax.upgrade.parts.numbers import Part
from fct_jax.upgrade.parts.places import name_of
from fct_jax.upgrade.parts.progress import LAYOUT
from fct_jax.upgrade.parts.publishing import Elsewhere, Publishing, Removed

_WAIT = 0.5  # seconds between two looks at what another part does


def migration_of(workdir: Path, opened: Opened) -> Migration:
    """Return the migration of an upgrade's directory."""
    source, mapping, settings = opened.source, opened.mapping, opened.settings
    size, output, dtype = settings.batch_size, settings.output, settings.dtype
    return Migration(workdir, source, mapping, size, output, dtype)


class Running:
    """The translation of one gallery in pieces, as one process takes part in it."""

    def __init__(self, workdir: Path, opened: Opened):
        self.workdir, self._opened = workdir, opened
        self._work = work = migration_of(self.workdir, self._opened)
        self.place = place_for(workdir, opened.settings.output)
        self.publishing = Publishing(self.place, work.target, work.translator)
        self._content: str | None = None

    @classmethod
    def resumed(cls, workdir: Path) -> "Running":
        """Open what an upgrade's directory remembers, to take part in its translation."""
        settings = merged(workdir, {})
        source = open_gallery(settings.gallery, **settings.open_options())
        mapping = load_map(settings.map).forward().for_dim(source.dim)
        return cls(workdir, Opened(settings, source, mapping, None, False))

    @property
    def begun(self) -> bool:
        """Return whether a translation in pieces has begun, and is not finished."""
        return self.place.read(f"{self.place.records}{LAYOUT}") is not None

    def is_over(self) -> bool:
        """Return whether the gallery is translated; what is left of the pieces is removed then."""
        over = migration_of(self.workdir, self._opened).progress.ready
        if over:
            self.place.remove()
        return over

    def begin(self, plan: Plan | None, check) -> bool:
        """Publish the layout, or check that this gallery and map are those of the published one.

        Returns False if another process has just translated the gallery, so that nothing is left.

        Args:
          plan: the plan of the upgrade, if there is one.
          check: is called before the first piece of all; raises UserError if something does not
            match, and returns a Certificate or None.

        Raises:
          UserError: another translation is going on in the directory.
        """
        begun = self.begun
        if self._work.progress.layout is not None and not begun:
            if self.is_over():
                return False
            raise UserError(
                f"{self.workdir} is being translated by one process; repeat the command without "
                "--part to finish it, or choose another directory"
            )
        identity = self._work.identity()
        with self._turn() as first:
            if first:
                if self.is_over():
                    return False
                certificate: Certificate | None = check(plan)
                self.publishing.place.prepare()
                content = None if certificate is None else certificate.content
                self.publishing.lay_out(identity, content)
            try:
                self._content = self.publishing.join(identity)
            except Removed:
                if self.is_over():  # another part has finished since the layout was seen
                    return False
                raise
        self._opened.remember(self.workdir)
        self.place.tidy()
        return True

    @contextlib.contextmanager
    def _turn(self):
        """Yield whether this process is the first, which checks; others wait until it has done so.

        To check, the whole gallery may have to be read.
        """
        lock = Lock(self.workdir.resolve() / "first-part")
        self.workdir.mkdir(parents=True, exist_ok=True)
        said = False
        while not self.begun and not lock.held:
            try:
                lock.take()
            except UserError:
                if not said:
                    console.print("another part is checking the gallery; this one waits")
                said = True
                time.sleep(_WAIT)
        try:
            yield not self.begun
        finally:
            if lock.held:
                lock.remove()

    def run(self, part: Part) -> bool:
        """Make the part's pieces that are missing, and finish if all are there.

        Returns whether the gallery is translated, and is this directory's.
        """
        try:
            return self._run(part)
        except Elsewhere as error:
            console.print(f"{error}", soft_wrap=True)
            return False

    def _run(self, part: Part) -> bool:
        publishing = self.publishing
        self._check_owner()
        if self._work.progress.rows == publishing.pieces[-1].stop:
            return self.finish()  # all are checked already, and may have been moved
        mine = [publishing.pieces[n] for n in part.pieces(len(publishing.pieces))]
        total = sum(piece.stop - piece.start for piece in mine)
        with Bar(f"translating {part}", total, "vectors") as bar:
            for piece in mine:
                try:
                    self._make_missing(piece)
                except Elsewhere:
                    raise
                except UserError:
                    if self.is_over():
                        return True  # others were faster, and have removed the pieces
                    raise
                bar.advance(piece.stop - piece.start)
        there = len(publishing.published())
        console.print(
            f"{part}: its {len(mine)} pieces are published; of all parts, {there} of "
            f"{len(publishing.pieces)} are",
            soft_wrap=True,
        )
        return there == len(publishing.pieces) and self.finish()

    def _make_missing(self, piece) -> None:
        """Make a piece, unless it is published, or in the gallery with only its record left."""
        publishing = self.publishing
        if publishing.record(piece) is None and not self._joined(piece):
            publishing.make(piece)
            if self._joined(piece):  # meanwhile, as another process had published it
                publishing.remove_vectors(piece)

    def _joined(self, piece) -> bool:
        return piece.stop <= Progress(Journal(self.workdir / "journal.jsonl").records).rows

    def finish(self, workers: Workers | None = None, new_meta: dict | None = None) -> bool:
        """Make the pieces the gallery, and those that are missing or damaged anew.

        Args:
          workers: make them; None: this process does.
          new_meta: describes the vectors that are re-embedded later.

        Returns False if another process is doing this.
        """
        self._check_owner()
        lock = lock_of(self.workdir)
        try:
            lock.take()
        except UserError:
            if workers is not None:
                raise
            return False
        try:
            # Another process may have finished since the journal was read.
            work = migration_of(self.workdir, self._opened)
            while not work.progress.ready:
                finishing = Finishing(work, self.publishing, new_meta or {})
                missing = finishing.finish(self._content)
                if missing and workers is not None:
                    workers.make(self.workdir, missing)
                elif missing:
                    self._make(missing)
        finally:
            lock.remove()
        return True

    def _check_owner(self) -> None:
        """Raise Elsewhere if another directory continues with the gallery, and may change it."""
        by = self.place.finished_by()
        if by is not None and by != name_of(self.workdir):
            raise Elsewhere(f"{self.place.name} was finished by {by}; continue in that directory")

    def _make(self, pieces) -> None:
        for piece in pieces:
            self.publishing.make(piece)
