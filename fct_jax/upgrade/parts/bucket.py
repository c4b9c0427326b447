"""A Parquet gallery in an object store as the result of an upgrade: ``--output s3://…``."""

from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import Gallery
from fct_jax.upgrade.galleries.parquet import ParquetTarget
from fct_jax.upgrade.galleries.target import Target
from fct_jax.upgrade.parts.places import Bucket, Folder, Place
from fct_jax.upgrade.parts.progress import FOLDER


def place_for(workdir: Path, output: str | None) -> Place:
    """Return the place where the pieces of an upgrade are published."""
    local = workdir / FOLDER
    return Folder(local) if output is None else Bucket(output, local)


def target_for(source: Gallery, workdir: Path, output: str | None, dtype=None) -> Target:
    """Return the target of an upgrade: files beside its journal, or objects at ``output``.

    dtype: name of the type of the stored vectors, as for `Target`.

    Raises UserError if a gallery of this form cannot be written there.
    """
    if output is None:
        return source.writer(source, workdir, dtype)
    if source.writer is not ParquetTarget:
        raise UserError(
            f"output={output}: only a Parquet gallery is written to an object store, but "
            f"{source.name} is of the form {source.form}; omit output"
        )
    ours, theirs = output.rstrip("/") + "/", source.name.rstrip("/") + "/"
    if ours.startswith(theirs) or theirs.startswith(ours):
        raise UserError(f"output={output} is not apart from the gallery, which is never changed")
    return BucketTarget(source, workdir, output, dtype)


class BucketTarget(ParquetTarget):
    """Files of a Parquet gallery in an object store, which are replaced one by one.

    The rows that re-embedding changes are kept in ``store`` in the upgrade's directory, as for
    files on disk.
    """

    def __init__(self, source: Gallery, workdir: Path, output: str, dtype=None):
        super().__init__(source, workdir, dtype)
        self.place, self.output = Bucket(output, Path(workdir) / FOLDER), output

    @property
    def made(self):
        return self.output

    def create(self, dim, metric):
        raise UserError(f"{self.output} is made in pieces; repeat the command")

    def keep(self, name, data):
        self.place.make()
        self.place.publish_bytes(name, data, again=True)

    def replace(self, numbers, vectors, again):
        self.place.make()
        for number in numbers:
            name = self.file_name(number)
            partial = self.place.partial(name)
            try:
                self.write_file(number, partial, vectors, self.versions)
                self.place.publish(name, partial, again=True)
            finally:
                partial.unlink(missing_ok=True)

    def complete(self):
        pass  # readers ask for the state in _meta.json
