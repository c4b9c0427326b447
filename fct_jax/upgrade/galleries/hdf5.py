"""HDF5 files as a gallery, such as those of ann-benchmarks."""

import h5py
import numpy as np

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.arrays import IDS, Array, ArraysGallery, pick, pick_vectors
from fct_jax.upgrade.galleries.base import Options

_METRICS = {"angular": "cosine", "euclidean": "l2"}  # by the attribute of ann-benchmarks


class Hdf5Gallery(ArraysGallery):
    """The data set ``vectors``, ``train`` …, or the only one (N, D); ids from ``ids``, if any.

    Vectors stay on disk. ``vector_column`` and ``id_column`` can name other data sets, also in
    groups (``group/name``).
    """

    def __init__(self, path, options: Options):
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        found: dict[str, h5py.Dataset] = {}
        self._file.visititems(lambda name, item: _keep(found, name, item))
        shapes = {name: held.shape for name, held in found.items()}
        held = found[pick_vectors(options.vector_column, shapes, str(path))]
        ids = pick(options.id_column, shapes, IDS, "ids", str(path))
        metric = _METRICS.get(self._file.attrs.get("distance"))
        array = Array(f"{path}:{held.name}", held.shape, held.dtype, lambda a, b: held[a:b])
        super().__init__(
            path,
            [array],
            None if ids is None else np.asarray(found[ids][:]),
            {} if metric is None else {"metric": metric},
        )


def _keep(found: dict, name: str, item) -> None:
    if isinstance(item, h5py.Dataset):
        found[name] = item
