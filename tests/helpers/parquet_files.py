"""Parquet galleries for tests: files with chosen columns, and new-space copies of them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FLOATS = pa.list_(pa.float32())


def write(path, ids, vectors, kind=FLOATS, **columns):
    """Write a file with an id, a vector and other columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = columns.pop("settings", {})
    table = pa.table({"id": ids, "vector": pa.array(list(vectors), kind), **columns})
    pq.write_table(table, path, **settings)
    return path


def published(gallery, workdir, values):
    """Write the new-space copy of a gallery, filled with values; return its folder."""
    workdir.mkdir(exist_ok=True)
    target = gallery.writer(gallery, workdir)
    target.create(values.shape[1], "l2")
    target.open(values.shape[1])
    target.vectors.write(0, values)
    target.publish()
    target.describe({"state": "finished"})
    target.complete()
    target.close()
    return workdir / "gallery"


def random(count, dim=3):
    return np.random.default_rng(count).standard_normal((count, dim)).astype(np.float32)
