"""A made-up gallery of any size, its map, the new model, and the plain loop beside it.

Old vectors are unit vectors of independent normal numbers, a block of `BLOCK` rows from the seed
(`SEED`, number of the block). The new model turns them by a fixed matrix and adds noise that
depends on the id alone, so that it gives a vector again the same.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError

DIM = 384
BLOCK = 1 << 16
SEED, SEED_OF_MODEL = 0, 1
PAIRS = 4000  # that the map is fitted on: other rows than those of the gallery
NOISE = 0.1
GALLERY = "FCT_SCALE_GALLERY"  # environment variable with the gallery's directory
STORED = 5 * DIM * 4  # bytes a row: table, plain copy, new table, and what is replaced in them
COPIES = 2.1  # of the gallery that are on disk at a time: itself, pieces and result, a piece twice


def check_space(folder: Path, rows: int, of_store: int = 0) -> None:
    """Raise UserError if the disk has not enough room for a run with ``of_store`` rows in a store.

    The galleries of the files' steps are removed before the store is made.
    """
    free = shutil.disk_usage(folder).free
    needed = max(COPIES * rows * DIM * 2, rows * DIM * 2 + of_store * STORED)
    if needed > 0.95 * free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, but {rows:,} rows need {needed / 1e9:.1f} GB; "
            "give fewer --rows or another --folder"
        )


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows over their length."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_gallery(folder: Path, rows: int) -> None:
    """Write an EmbeddingSet of float16 vectors, block by block."""
    from fct_jax.storage.embedding_set import EmbeddingSet

    folder.mkdir(parents=True)
    where = folder / "vectors.npy"
    vectors = np.lib.format.open_memmap(where, "w+", np.float16, (rows, DIM))
    del vectors  # its header and size are written
    with where.open("r+b") as file:
        file.seek(where.stat().st_size - rows * DIM * 2)
        for number, start in enumerate(range(0, rows, BLOCK)):
            made = np.random.default_rng((SEED, number)).standard_normal((BLOCK, DIM), np.float32)
            unit(made[: rows - start]).astype(np.float16).tofile(file)
        file.flush()
        os.fsync(file.fileno())
    found = EmbeddingSet.of(np.load(where, mmap_mode="r"), meta={"normalized": True})
    found.write_companions(folder)


def write_map(folder: Path) -> None:
    """Fit the map, a ridge regression with an uncertainty, and save it."""
    from fct_jax.upgrade import fit

    old = unit(np.random.default_rng(SEED_OF_MODEL).standard_normal((PAIRS, DIM), np.float32))
    ids = -1 - np.arange(PAIRS)
    fit(old, new_vectors(old, ids), method="ridge", out=folder)


def new_vectors(old: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the new model's vectors (n, DIM) of items, from their old ones and ids."""
    turn = np.random.default_rng(SEED_OF_MODEL).standard_normal((DIM, DIM), np.float32) / DIM**0.5
    noise = [np.random.default_rng((SEED_OF_MODEL, abs(int(i)))).standard_normal(DIM) for i in ids]
    return unit(old @ turn + NOISE / DIM**0.5 * np.float32(noise)).astype(np.float32)


def embed(ids) -> np.ndarray:
    """Return new vectors of the gallery's items; ``apply --reembed tools.scale.gallery:embed``."""
    vectors = np.load(Path(os.environ[GALLERY]) / "vectors.npy", mmap_mode="r")
    return new_vectors(vectors[ids].astype(np.float32), np.asarray(ids))


def main(words) -> None:
    """Run a step in a process of its own: ``gallery FOLDER ROWS``, or ``plain GALLERY MAP OUT``."""
    step, *given = words
    if step == "gallery":
        write_gallery(Path(given[0]), int(given[1]))
    elif step == "map":
        write_map(Path(given[0]))
    else:
        from fct_jax.upgrade.maps.loading import load_map
        from tools.speed.translating import plain_set

        source, mapping, out = given
        plain_set(Path(source), Path(out), load_map(mapping).weights["weight"], "<f2")


if __name__ == "__main__":
    main(sys.argv[1:])
