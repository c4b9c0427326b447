"""Numbered ``.npy`` shards as a gallery, with metadata in Parquet beside them.

This is the layout of LAION's embeddings and of clip-retrieval:

    ROOT/img_emb/img_emb_0.npy, img_emb_1.npy, …, img_emb_10.npy
    ROOT/text_emb/text_emb_0.npy, …
    ROOT/metadata/metadata_0.parquet, …

The path is ROOT or one of its folders, on disk or in an object store; shards without metadata have
row numbers as ids.
"""

from posixpath import basename, dirname

import numpy as np
import pyarrow.parquet as pq

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries import columns
from fct_jax.upgrade.galleries.arrays import ArraysGallery, pick
from fct_jax.upgrade.galleries.base import Options
from fct_jax.upgrade.galleries.names import numbered
from fct_jax.upgrade.galleries.places import Folder


class ShardsGallery(ArraysGallery):
    """Shards in the order of their numbers; each has the metadata file of the same number."""

    def __init__(self, path, options: Options):
        where = Folder.at(path)
        if not _shards(where):
            folders = {f.name: f for f in where.folders() if _shards(f)}
            name = pick(options.vector_column, dict.fromkeys(folders, ()), (), "vectors", str(path))
            if name is None and len(folders) > 1:
                raise UserError(
                    f"{path}: the folders {', '.join(folders)} hold vectors; say which "
                    "(vector_column)"
                )
            where = folders[name or next(iter(folders))]
        shards = _shards(where)
        arrays = [where.array(shard) for shard in shards]
        tables = _tables(where)
        ids = None
        if tables:
            sizes = [array.shape[0] for array in arrays]
            ids = _ids(where, shards, sizes, tables, options)
        super().__init__(path, arrays, ids, {})
        self._where = str(path)

    @property
    def name(self) -> str:
        return self._where


def _shards(folder: Folder) -> list[str]:
    return [path for path in folder.numbered(".npy") if not path.endswith("_ids.npy")]


def _tables(folder: Folder) -> list[str]:
    """Return the metadata files of a folder of shards, in it or in ``metadata`` beside it."""
    for where in (folder, folder.within("metadata"), folder.beside("metadata")):
        if found := where.numbered(".parquet"):
            return found
    return []


def _ids(
    where: Folder, shards: list[str], sizes: list[int], tables: list[str], options
) -> np.ndarray | None:
    by_number = {numbered(basename(table)): table for table in tables}
    chunks, column = [], None
    for shard, size in zip(shards, sizes, strict=True):
        name = basename(shard)
        table = by_number.get(numbered(name))
        if table is None:
            raise UserError(
                f"{where.path}: {name} has no metadata file of the same number in "
                f"{dirname(tables[0])}"
            )
        with pq.ParquetFile(table, filesystem=where.store) as reader:
            if column is None:
                column = columns.choose_ids(reader.schema_arrow, table, options)
            if reader.metadata.num_rows != size:
                raise UserError(
                    f"{where.path}: {basename(table)} has {reader.metadata.num_rows} rows, "
                    f"but {name} has {size} vectors"
                )
            if column is None:
                return None
            chunks += reader.read([column]).column(0).chunks
    ids, null = columns.ids_of(chunks, sum(sizes), where.path)
    if len(null):
        raise UserError(
            f"{where.path}: {len(null)} ids in {column!r} are null, first in row {null[0]}"
        )
    return ids
