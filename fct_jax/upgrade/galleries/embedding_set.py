"""An EmbeddingSet's folder as a gallery; its blocks are read, not memory-mapped."""

import numpy as np

from fct_jax.runtime.progress import console
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.galleries.base import Gallery, Options
from fct_jax.upgrade.galleries.rows import Rows, npy_rows
from fct_jax.upgrade.galleries.stored import Coding
from fct_jax.upgrade.galleries.target import Target


class SetTarget(Target):
    """An EmbeddingSet that is filled in place; also used for forms that can only be read."""

    def lay_out(self, dim: int, metric: str) -> None:
        source = self.source
        if not isinstance(source, SetGallery):
            console.print(f"{source.name} cannot be written; the new gallery is an EmbeddingSet")
        self.empty_vectors(self.store / "vectors.npy", dim)
        np.save(self.store / "ids.npy", source.ids)
        if source.labels is not None:
            np.save(self.store / "labels.npy", source.labels)

    def open_vectors(self, dim: int) -> Rows:
        return npy_rows(self.store / "vectors.npy")


class SetGallery(Gallery):
    """An EmbeddingSet. Its blocks are read, because mapped pages would count as memory."""

    writer = SetTarget
    scattered = True

    def __init__(self, path, options: Options):
        found = EmbeddingSet.read(
            path, unfinished=options.unfinished, verify=False, unique=False, coded=True
        )
        super().__init__(path, found.ids, found.dim, found.meta)
        self.labels, self._mapped = found.labels, found.vectors
        self.coding = Coding.of_meta(found.meta, found.name)
        if self.coding is None:
            self.dtype = found.vectors.dtype
        else:
            self.dim, self.exact = self.coding.dim_of(found.dim, found.meta, found.name), False
        self.numbered = not (self.path / "ids.npy").is_file()
        if (self.path / "version.npy").is_file():
            self.versions = np.load(self.path / "version.npy", allow_pickle=False)

    def read_stored(self, start: int, stop: int) -> np.ndarray:
        values = self._values(start, stop)
        if self.coding is not None:
            return self.coding.decode(values)
        return values.astype(np.float32, copy=False)

    def read_exactly(self, start: int, stop: int) -> np.ndarray:
        if len(self._gone):
            return super().read_exactly(start, stop)
        return self._values(start, stop)

    def _values(self, start: int, stop: int) -> np.ndarray:
        if not self._mapped.flags.c_contiguous:
            return np.array(self._mapped[start:stop])
        width = self._mapped.shape[1]
        values = np.fromfile(
            self.path / "vectors.npy",
            self._mapped.dtype,
            (stop - start) * width,
            offset=self._mapped.offset + start * width * self._mapped.itemsize,
        )
        return values.reshape(-1, width)
