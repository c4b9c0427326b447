"""Small galleries in every form, and a map that needs no fitting, for the upgrade's tests."""

import itertools
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.galleries.columns import numpy_dtype
from fct_jax.upgrade.maps.functions import Linear
from fct_jax.upgrade.maps.map import KnownPairs, Map
from fct_jax.upgrade.migration.upgrade import Upgrade

OLD_DIM, NEW_DIM = 6, 5
FORMS = ("set", "parquet", "faiss")


def vectors(count=300, seed=0, noise=0.1):
    """Return (ids, old, new) of items: new vectors are a rotation of the old ones plus noise."""
    rng = np.random.default_rng(seed)
    old = rng.standard_normal((count, OLD_DIM)).astype(np.float32)
    new = old @ weight() + noise * rng.standard_normal((count, NEW_DIM)).astype(np.float32)
    return rng.permutation(count) * 3 + 1, old, new.astype(np.float32)


def weight():
    rng = np.random.default_rng(99)
    return np.linalg.qr(rng.standard_normal((OLD_DIM, OLD_DIM)))[0][:, :NEW_DIM].astype(np.float32)


def plain_map(known=True, matrix=None, uncertainty=True, **description):
    """Return the map of `vectors`; its test pairs are not items of a gallery."""
    described = {
        "method": "ridge",
        "dim_in": OLD_DIM,
        "dim_out": NEW_DIM,
        "old_fingerprint": "old-model",
        "new_fingerprint": "new-model",
        **description,
    }
    _, old, new = vectors(100, seed=5)
    pairs = KnownPairs(np.arange(100) + 10**6, old, new) if known else None
    matrix = weight() if matrix is None else matrix
    described["dim_out"] = matrix.shape[1]
    function = Linear(matrix, np.float32(1), np.zeros(matrix.shape[1], np.float32))
    return Map(described, function, doubled_first_value() if uncertainty else {}, pairs)


def doubled_first_value():
    """Return the arrays of a regressor whose log-variance is twice a vector's first value."""
    return {
        "uncertainty_mean": np.zeros(OLD_DIM),
        "uncertainty_scale": np.ones(()),
        "uncertainty_hidden": np.zeros((OLD_DIM, 1)),
        "uncertainty_hidden_bias": np.zeros(1),
        "uncertainty_weight": np.array([2.0] + [0.0] * (OLD_DIM + 1)),
        "uncertainty_bias": np.zeros(()),
        "uncertainty_range": np.array([-np.inf, np.inf]),
    }


def write_gallery(form, folder, ids, values, meta=None):
    """Write a gallery of the form; return its path."""
    meta = {"fingerprint": "old-model"} if meta is None else meta
    if form == "set":
        return EmbeddingSet.of(values, ids, np.arange(len(ids)) % 7, meta=meta).write(folder)
    folder.mkdir()
    if form == "parquet":
        write_parquet(folder, ids, values)
        return folder
    path = folder / "old.faiss"
    index = faiss.IndexIDMap2(faiss.IndexFlatL2(values.shape[1]))
    index.add_with_ids(np.ascontiguousarray(values, np.float32), ids)
    faiss.write_index(index, str(path))
    return path


def write_parquet(folder, ids, values, sizes=(70, 0, 130), group=50, kind=None):
    """Write files of these sizes, the rest to a last one; ``kind``: Arrow type of the vectors."""
    kind = kind or pa.list_(pa.float32())
    bounds = np.minimum(np.cumsum([0, *sizes, len(ids)]), len(ids))
    for number, (first, last) in enumerate(itertools.pairwise(bounds)):
        rows = list(values[first:last].astype(numpy_dtype(kind.value_type)))
        table = pa.table(
            {
                "title": [f"item {i}" for i in ids[first:last]],
                "vector": pa.array(rows, type=kind),
                "id": pa.array(ids[first:last]),
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=group)


def contents(folder) -> dict[str, bytes]:
    """Return the content of every file of a directory by name."""
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def made_galleries(folder, count):
    """Return (paths of a gallery in each form, path of all new vectors, ids, old, new)."""
    ids, old, new = vectors(count)
    paths = {form: write_gallery(form, folder / form, ids, old) for form in FORMS}
    as_set(folder / "new", new, ids, fingerprint="new-model")
    return paths, folder / "new", ids, old, new


def upgraded(made, form, workdir, **settings):
    """Upgrade one of `made_galleries` with the plain map, in small blocks and batches."""
    settings = {"reembed": str(made[1]), "batch_size": 16, "batch_items": 23, **settings}
    return Upgrade(workdir).apply(plain_map(), made[0][form], **settings)


def as_set(folder, values, ids, **meta):
    """Write an EmbeddingSet; return its directory."""
    return EmbeddingSet.of(values, ids, meta=meta).write(folder)


def write_probe(folder, ids, new, count=80):
    """Write a probe of all items, and queries near the first of them."""
    rng = np.random.default_rng(3)
    queries = new[:count] + 0.05 * rng.standard_normal((count, new.shape[1])).astype(np.float32)
    EmbeddingSet.of(new, ids, meta={"fingerprint": "new-model"}).write(folder / "new")
    EmbeddingSet.of(queries, meta={"fingerprint": "new-model"}).write(folder / "query")


def tree(folder) -> dict[str, bytes]:
    """Return the content of every file of a directory and its subfolders."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
