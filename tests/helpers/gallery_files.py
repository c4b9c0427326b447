"""Writes files of vectors in the forms in which people keep them."""

import gzip
import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest


def random(count=30, dim=4):
    return np.random.default_rng(count).standard_normal((count, dim)).astype(np.float32)


def check(gallery, values, ids=None):
    """Check every row of a gallery, read in one piece and in several."""
    count = len(values)
    np.testing.assert_array_equal(gallery.ids, np.arange(count) if ids is None else ids)
    np.testing.assert_array_equal(gallery.read(0, count), values)
    np.testing.assert_array_equal(gallery.rows([count - 1, 0, 3]), values[[count - 1, 0, 3]])
    np.testing.assert_array_equal(np.concatenate([v for _, v in gallery.blocks(7)]), values)
    assert gallery.dim == values.shape[1]
    return gallery


def laion(root, sizes=(3,) * 12, key=True):
    """Write LAION's layout with shards of ``sizes`` rows; return all vectors."""
    values = random(sum(sizes)).astype(np.float16)
    bounds = np.cumsum([0, *sizes])
    for folder in ("img_emb", "metadata"):
        (root / folder).mkdir(parents=True)
    for number in range(len(sizes)):
        rows = np.arange(bounds[number], bounds[number + 1])
        np.save(root / "img_emb" / f"img_emb_{number}.npy", values[rows])
        table = {"caption": ["x"] * len(rows), "key": [f"{r:09d}" for r in rows]}
        if not key:
            table = {"similarity": [0.5] * len(rows)}
        pq.write_table(pa.table(table), root / "metadata" / f"metadata_{number}.parquet")
    return values.astype(np.float32)


def write_vecs(path, values):
    """Write a file of the kind that its ending names."""
    kinds = {".fvecs": "<f4", ".bvecs": "u1", ".ivecs": "<i4", ".fbin": "<f4", ".u8bin": "u1"}
    values = values.astype({**kinds, ".i8bin": "i1"}[path.suffix])
    count, dim = values.shape
    if path.suffix.endswith("vecs"):
        heads = np.full((count, 1), dim, "<i4")
        path.write_bytes(
            b"".join(h.tobytes() + v.tobytes() for h, v in zip(heads, values, strict=True))
        )
    else:
        path.write_bytes(np.array([count, dim], "<u4").tobytes() + values.tobytes())
    return values.astype(np.float32)


def csv(path, header, rows):
    text = "\n".join([header, *rows]) + "\n"
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def quoted(row, brackets="[]"):
    return f'"{brackets[0]}{",".join(map(repr, row.tolist()))}{brackets[1]}"'


def faiss_file(path, index):
    faiss.write_index(index, str(path))
    return path


def written(form, folder, values):
    """Write a gallery of the form to its own folder; return its path."""
    folder.mkdir(parents=True)
    lists = pa.array(values.tolist(), pa.list_(pa.float32(), values.shape[1]))
    table = pa.table({"id": np.arange(len(values)), "vector": lists})
    if form == "npy":
        np.save(folder / "x.npy", values)
    elif form == "shards":
        for number, part in enumerate(np.array_split(values, 11)):
            np.save(folder / f"x_{number}.npy", part)
        return folder
    elif form == "vecs":
        write_vecs(folder / "x.fvecs", values)
    elif form == "hdf5":
        h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
        with h5py.File(folder / "x.hdf5", "w") as file:
            file["vectors"] = values
    elif form == "csv":
        csv(folder / "x.csv", "id,vector", [f"{i},{quoted(v)}" for i, v in enumerate(values)])
    elif form == "json":
        lines = [json.dumps({"id": i, "vector": v.tolist()}) for i, v in enumerate(values)]
        (folder / "x.jsonl").write_text("\n".join(lines))
    elif form == "arrow":
        with pa.ipc.new_file(str(folder / "x.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=37)
    elif form == "lance":
        lance = pytest.importorskip("lance", reason="the extra lance is not installed")
        lance.write_dataset(table, folder / "x.lance", max_rows_per_file=64)
    elif form == "parquet":
        pq.write_table(table, folder / "x.parquet", row_group_size=37)
    else:
        index = faiss.index_factory(values.shape[1], "IVF4,Flat")
        index.train(values)
        index.add(values)
        faiss.write_index(index, str(folder / "x.faiss"))
    return next(folder.iterdir())
