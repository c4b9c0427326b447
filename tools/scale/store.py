"""A LanceDB table with the rows of the made-up gallery, for the steps that need readers.

Files have no pointer that sends readers from the old vectors to the new ones; a store has. The
table lies in a folder, so that nothing has to run beside it.
"""

import shutil
import sys
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from tools.scale.gallery import BLOCK, DIM, embed

_SAMPLE = 1000  # rows that are compared


def uri(folder: Path, table: str = "items") -> str:
    """Return the URI of a table."""
    return f"lancedb://{folder}#{table}"


def _schema():
    import pyarrow as pa

    return pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), DIM))])


def write_table(folder: Path, gallery: Path, rows: int) -> None:
    """Write the gallery's first rows to a table, block by block; ids are row numbers."""
    import lancedb
    import pyarrow as pa

    vectors = np.load(gallery / "vectors.npy", mmap_mode="r")

    def blocks():
        for start in range(0, rows, BLOCK):
            some = vectors[start : min(start + BLOCK, rows)].astype(np.float32)
            ids = np.arange(start, start + len(some))
            yield _batch(pa.array(ids), some)

    folder.mkdir(parents=True)
    lancedb.connect(folder).create_table("items", blocks(), schema=_schema())


def write_plain(folder: Path, weight: np.ndarray) -> None:
    """Read the table in batches, multiply, and write another one, with Lance itself.

    LanceDB waits for itself if it writes what it is still reading.
    """
    import lance

    def blocks():
        for batch in lance.dataset(folder / "items.lance").to_batches(batch_size=BLOCK):
            old = batch["vector"].flatten().to_numpy().reshape(-1, DIM)
            yield _batch(batch["id"], old @ weight)

    lance.write_dataset(blocks(), folder / "plain.lance", schema=_schema())
    shutil.rmtree(folder / "plain.lance")


def _batch(ids, vectors: np.ndarray):
    import pyarrow as pa

    columns = [ids, pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM)]
    return pa.record_batch(columns, schema=_schema())


def check_readers(folder: Path, mapping: Path, rows: int, switched: bool) -> None:
    """Raise UserError unless readers are sent to the new table, or back to the old one.

    The new one must have all rows, and in a sample of them each vector must be that of the map or
    of the new model, a few of the latter.
    """
    from fct_jax.upgrade.maps.loading import load_map
    from fct_jax.upgrade.stores import open_store

    first = open_store(uri(folder))
    current = first.pointer().current()["store"]
    if (current != uri(folder)) != switched:
        raise UserError(f"readers are sent to {current}")
    if not switched:
        return
    store = open_store(current)
    if store.count() != rows:
        raise UserError(f"{current} has {store.count():,} rows of {rows:,}")
    sample = store.sample(_SAMPLE)
    old = first.fetch(sample.ids)
    old = np.stack([old[one] for one in sample.ids.tolist()])
    translated, _ = load_map(mapping).transform(old)
    differ = [np.abs(sample.vectors - one).max(axis=1) for one in (translated, embed(sample.ids))]
    if np.minimum(*differ).max() > 1e-2 or not np.any(differ[1] < 1e-2):
        raise UserError(
            f"{current} has vectors of neither the map nor the new model, or none of it"
        )


def main(words) -> None:
    """Run a step: ``table FOLDER GALLERY ROWS``, ``plain FOLDER MAP``, or a check of readers."""
    step, folder, *given = words
    if step == "table":
        write_table(Path(folder), Path(given[0]), int(given[1]))
    elif step == "plain":
        from fct_jax.upgrade.maps.loading import load_map

        write_plain(Path(folder), load_map(given[0]).weights["weight"])
    else:
        check_readers(Path(folder), Path(given[0]), int(given[1]), step == "switched")


if __name__ == "__main__":
    main(sys.argv[1:])
