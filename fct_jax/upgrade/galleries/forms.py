"""A form of gallery: the test that recognises it, and the class that reads it."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.plugins import imported


@dataclasses.dataclass(frozen=True)
class Form:
    """One row of the table of forms.

    Attributes:
      name: its name in journals, and before ``@`` in ``NAME@PATH``.
      what: the form in words, for messages: "a folder of .parquet files".
      recognises: tests whether a Path, or the text of a URI, is of this form, by names and first
        bytes only.
      reader: a subclass of `Gallery`, or its ``module:name``, which is imported when needed,
        because each form has its own library. Its ``writer`` is the `Target` class that writes
        new-space galleries.
      extra: extra of this package that installs the form's library; "" if none is needed.

    Example (a form of your own, offered by the pyproject.toml of your package):

        [project.entry-points."fct_jax.galleries"]
        mine = "mypackage.galleries:MINE"
    """

    name: str
    what: str
    recognises: Callable[[Path], bool]
    reader: str | Callable
    extra: str = ""

    def open(self, path, options):
        """Return the gallery at ``path``. Raises UserError if it is unsound."""
        made = self.load()(path, options)
        made.form = self.name
        return made.settle(options)

    def load(self) -> type:
        """Return the reader's class. Raises UserError if its library is not installed."""
        if not isinstance(self.reader, str):
            return self.reader
        try:
            return imported(self.reader, "form of gallery")
        except UserError as error:
            if not self.extra:
                raise
            raise UserError(f"{error}; pip install 'fct_jax[{self.extra}]'") from None


def suffix(*endings: str) -> Callable[[Path], bool]:
    """Return a test for files whose names have one of these endings, in any case."""
    return lambda path: (
        isinstance(path, Path) and path.is_file() and path.name.lower().endswith(endings)
    )


def folder_with(pattern: str) -> Callable[[Path], bool]:
    """Return a test for folders that hold a file of this pattern (``**/`` for subfolders, too)."""
    return lambda path: isinstance(path, Path) and path.is_dir() and any(path.glob(pattern))


OBJECT_STORES = ("s3", "gs", "gcs", "hf", "file")  # schemes of URIs whose files can be read


def uri(*schemes: str) -> Callable[[Path], bool]:
    """Return a test for texts such as ``s3://bucket/folder``."""
    return lambda path: isinstance(path, str) and path.partition("://")[0] in schemes


def starts(*magic: bytes) -> Callable[[Path], bool]:
    """Return a test for files that begin with one of these bytes."""

    def test(path: Path) -> bool:
        if not (isinstance(path, Path) and path.is_file()):
            return False
        with path.open("rb") as file:
            return file.read(max(map(len, magic))).startswith(magic)

    return test


def either(*tests: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """Return a test for paths that pass one of these."""
    return lambda path: any(test(path) for test in tests)


def numbered_npy(path) -> bool:
    """Return whether a path or URI is a folder of numbered .npy files, or holds such folders."""
    if isinstance(path, str):
        return uri(*OBJECT_STORES)(path) and _remote_npy(path)
    found = (folder_with(pattern)(path) for pattern in ("*[0-9].npy", "*/*[0-9].npy"))
    return any(found)


def _remote_npy(where: str) -> bool:
    from fct_jax.upgrade.galleries.places import Folder

    if where.endswith(".parquet"):
        return False
    folder = Folder.at(where)
    # Each folder costs a request, and a table in Parquet may have thousands.
    some = itertools.islice(folder.folders(), 16)
    return any(each.numbered(".npy") for each in (folder, *some))
