"""Folders and files on disk or in an object store (``s3://``, ``gs://``, ``hf://``)."""

import dataclasses
import posixpath
from pathlib import Path

import numpy as np
import pyarrow.fs

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.arrays import Array
from fct_jax.upgrade.galleries.names import natural, numbered
from fct_jax.upgrade.galleries.npy import npy_array

_CLIENTS = {"hf": "huggingface_hub"}  # Python packages of the schemes that need one


def of_uri(uri: str) -> tuple:
    """Return the file system of a URI, the path in it, and what is there. Raises UserError."""
    scheme, _, rest = uri.partition("://")
    asked = uri
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in rest:
        # Its own limit is a quarter of an hour.
        asked += f"{'&' if '?' in rest else '?'}retry_limit_seconds=30"
    try:
        store, root = pyarrow.fs.FileSystem.from_uri(asked)
        return store, root, store.get_file_info(root)
    except ImportError:
        needed = _CLIENTS.get(scheme, "fsspec")
        raise UserError(f"{uri} needs {needed}: pip install {needed}") from None
    except Exception as error:  # clients raise exceptions of their own: no route, no credentials
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{uri} cannot be read: {said}") from None


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder.

    Attributes:
      store: its file system.
      path: its path there.
    """

    store: pyarrow.fs.FileSystem
    path: str

    @classmethod
    def at(cls, where) -> "Folder":
        """Return the folder at a path or URI. Raises UserError if the URI cannot be read."""
        if "://" in str(where):
            store, path, _ = of_uri(str(where))
            return cls(store, path.rstrip("/"))
        return cls(pyarrow.fs.LocalFileSystem(), str(Path(where).absolute()))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    def beside(self, name: str) -> "Folder":
        """Return the folder of a name beside this one."""
        return Folder(self.store, posixpath.join(posixpath.dirname(self.path), name))

    def within(self, name: str) -> "Folder":
        """Return the folder of a name in this one."""
        return Folder(self.store, posixpath.join(self.path, name))

    def folders(self) -> list["Folder"]:
        """Return the folders in this one, by name."""
        kind = pyarrow.fs.FileType.Directory
        found = sorted(info.path for info in self._infos() if info.type == kind)
        return [Folder(self.store, path) for path in found]

    def numbered(self, ending: str) -> list[str]:
        """Return the paths of the numbered files of an ending, in natural order."""
        kind = pyarrow.fs.FileType.File
        found = [i.path for i in self._infos() if i.type == kind and i.path.endswith(ending)]
        found = [path for path in found if numbered(posixpath.basename(path))]
        return sorted(found, key=lambda path: natural(posixpath.basename(path)))

    def _infos(self) -> list:
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return self.store.get_file_info(selector)

    def array(self, path: str) -> Array:
        """Return a ``.npy`` file as a part of a gallery; only the needed rows are read."""
        if isinstance(self.store, pyarrow.fs.LocalFileSystem):
            return npy_array(Path(path))
        return _remote(self.store, path)


def _remote(store, path: str) -> Array:
    """Return a ``.npy`` file in an object store. Raises UserError if it cannot be read."""
    try:
        with store.open_input_file(path) as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0
            header = header if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(file)
            start = file.tell()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if dtype.hasobject:
        raise UserError(f"{path} cannot be read: it holds Python objects, not numbers")
    if fortran:
        raise UserError(f"{path} is in Fortran order; write it with numpy.ascontiguousarray")
    width = shape[1] * dtype.itemsize if len(shape) == 2 else dtype.itemsize

    def read(first: int, last: int) -> np.ndarray:
        with store.open_input_file(path) as file:
            file.seek(start + first * width)
            data = file.read((last - first) * width)
        if len(data) < (last - first) * width:
            raise UserError(
                f"{path} is cut off: it has {len(data)} bytes of rows {first} to {last}"
            )
        return np.frombuffer(data, dtype).reshape(last - first, *shape[1:])

    return Array(posixpath.basename(path), tuple(shape), dtype, read)
