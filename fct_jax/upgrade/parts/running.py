"""Translating a gallery in pieces: one part of them, what is left of them, or all on an engine."""

from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.progress import Bar, console
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.migration.planning import Plan
from fct_jax.upgrade.migration.reading import Certificate
from fct_jax.upgrade.migration.settings import merged
from fct_jax.upgrade.migration.sides import Opened
from fct_jax.upgrade.migration.steps import Migration, lock_of
from fct_jax.upgrade.parts.engines import Workers
from fct_jax.upgrade.parts.finishing import Finishing
from fct_jax.upgrade.parts.numbers import Part
from fct_jax.upgrade.parts.places import Folder
from fct_jax.upgrade.parts.progress import FOLDER, LAYOUT
from fct_jax.upgrade.parts.publishing import Publishing


def begun(workdir: Path) -> bool:
    """Return whether a translation in pieces has begun, and is not finished."""
    return (workdir / FOLDER / LAYOUT).is_file()


class Running:
    """The translation of one gallery in pieces, as one process takes part in it."""

    def __init__(self, workdir: Path, opened: Opened):
        self.workdir, self._opened = workdir, opened
        self._work = work = self._migration()
        self.place = Folder(workdir / FOLDER)
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
    def ready(self) -> bool:
        """Return whether the gallery is translated; what is left of the pieces is removed then."""
        if self._work.progress.ready:
            self.place.remove()
        return self._work.progress.ready

    def begin(self, plan: Plan | None, check) -> None:
        """Publish the layout, or check that this gallery and map are those of the published one.

        Args:
          plan: the plan of the upgrade, if there is one.
          check: is called before the first piece of all; raises UserError if something does not
            match, and returns a Certificate or None.

        Raises:
          UserError: another translation is going on in the directory.
        """
        if self._work.progress.layout is not None and not begun(self.workdir):
            raise UserError(
                f"{self.workdir} is being translated by one process; repeat the command without "
                "--part to finish it, or choose another directory"
            )
        certificate: Certificate | None = None
        if not begun(self.workdir):
            certificate = check(plan)
        content = None if certificate is None else certificate.content
        self._content = self.publishing.begin(self._work.identity(), content)
        self._opened.remember(self.workdir)

    def run(self, part: Part) -> bool:
        """Make the part's pieces that are missing, and finish if all are there.

        Returns whether the gallery is translated.
        """
        publishing = self.publishing
        if self._work.progress.rows == publishing.pieces[-1].stop:
            return self.finish()  # all are checked already, and may have been moved
        mine = [publishing.pieces[n] for n in part.pieces(len(publishing.pieces))]
        total = sum(piece.stop - piece.start for piece in mine)
        with Bar(f"translating {part}", total, "vectors") as bar:
            for piece in mine:
                try:
                    if publishing.record(piece) is None:
                        publishing.make(piece)
                except UserError:
                    if self._migration().progress.ready:
                        return True  # others were faster, and have removed the pieces
                    raise
                bar.advance(piece.stop - piece.start)
        there = len(publishing.published())
        console.print(
            f"{part}: {len(mine)} of {len(publishing.pieces)} pieces are published; with those of "
            f"other parts {there}",
            soft_wrap=True,
        )
        return there == len(publishing.pieces) and self.finish()

    def finish(self, workers: Workers | None = None, new_meta: dict | None = None) -> bool:
        """Make the pieces the gallery, and those that are missing or damaged anew.

        Args:
          workers: make them; None: this process does.
          new_meta: describes the vectors that are re-embedded later.

        Returns False if another process is doing this.
        """
        lock = lock_of(self.workdir)
        try:
            lock.take()
        except UserError:
            if workers is not None:
                raise
            return False
        try:
            # Another process may have finished since the journal was read.
            work = self._migration()
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

    def _migration(self) -> Migration:
        opened = self._opened
        return Migration(self.workdir, opened.source, opened.mapping, opened.settings.batch_size)

    def _make(self, pieces) -> None:
        for piece in pieces:
            self.publishing.make(piece)
