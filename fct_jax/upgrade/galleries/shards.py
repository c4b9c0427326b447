"""Numbered ``.npy`` shards as a gallery, with metadata in Parquet beside them.

This is the layout of LAION's embeddings and of clip-retrieval:

    ROOT/img_emb/img_emb_0.npy, img_emb_1.npy, …, img_emb_10.npy
    ROOT/text_emb/text_emb_0.npy, …
    ROOT/metadata/metadata_0.parquet, …

The path is ROOT or one of its folders; shards without metadata have row numbers as ids.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries import columns
from fct_jax.upgrade.galleries.arrays import ArraysGallery, pick
from fct_jax.upgrade.galleries.base import Options
from fct_jax.upgrade.galleries.names import natural, numbered
from fct_jax.upgrade.galleries.npy import npy_array


class ShardsGallery(ArraysGallery):
    """Shards in the order of their numbers; each has the metadata file of the same number."""

    def __init__(self, path, options: Options):
        path = Path(path)
        where, folders = path, _folders(path)
        if not _shards(path):
            name = pick(options.vector_column, dict.fromkeys(folders, ()), (), "vectors", str(path))
            if name is None and len(folders) > 1:
                raise UserError(
                    f"{path}: the folders {', '.join(folders)} hold vectors; say which "
                    "(vector_column)"
                )
            where = folders[name or next(iter(folders))]
        shards = _shards(where)
        arrays = [npy_array(shard) for shard in shards]
        tables = _tables(where)
        ids = None
        if tables:
            sizes = [array.shape[0] for array in arrays]
            ids = _ids(path, shards, sizes, tables, options)
        super().__init__(path, arrays, ids, {})


def _shards(folder: Path) -> list[Path]:
    found = [f for f in folder.glob("*.npy") if numbered(f.name) and not f.stem.endswith("_ids")]
    return sorted(found, key=lambda f: natural(f.name))


def _folders(root: Path) -> dict[str, Path]:
    """Return the folders of shards in a root, by name."""
    return {f.name: f for f in sorted(root.iterdir()) if f.is_dir() and _shards(f)}


def _tables(folder: Path) -> list[Path]:
    """Return the metadata files of a folder of shards, in it or in ``metadata`` beside it."""
    for where in (folder, folder / "metadata", folder.parent / "metadata"):
        found = [f for f in where.glob("*.parquet") if numbered(f.name)] if where.is_dir() else []
        if found:
            return sorted(found, key=lambda f: natural(f.name))
    return []


def _ids(
    path, shards: list[Path], sizes: list[int], tables: list[Path], options
) -> np.ndarray | None:
    by_number = {numbered(table.name): table for table in tables}
    chunks, column = [], None
    for shard, size in zip(shards, sizes, strict=True):
        table = by_number.get(numbered(shard.name))
        if table is None:
            raise UserError(
                f"{path}: {shard.name} has no metadata file of the same number in "
                f"{tables[0].parent}"
            )
        with pq.ParquetFile(table) as reader:
            if column is None:
                column = columns.choose_ids(reader.schema_arrow, str(table), options)
            if reader.metadata.num_rows != size:
                raise UserError(
                    f"{path}: {table.name} has {reader.metadata.num_rows} rows, "
                    f"but {shard.name} has {size} vectors"
                )
            if column is None:
                return None
            chunks += reader.read([column]).column(0).chunks
    ids, null = columns.ids_of(chunks, sum(sizes), str(path))
    if len(null):
        raise UserError(f"{path}: {len(null)} ids in {column!r} are null, first in row {null[0]}")
    return ids
