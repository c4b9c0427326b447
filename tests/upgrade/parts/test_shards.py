"""The checksums of a source's shards are compared by the pieces in which they begin."""

import itertools

import numpy as np
import pytest
import tiny_galleries as tiny

from fct_jax.errors import UserError
from fct_jax.storage import checksums
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.parts.pieces import Piece
from fct_jax.upgrade.parts.shards import ShardsOfPiece

COUNT, SHARD, BLOCK = 300, 70, 16
BORDERS = (0, 64, 70, 71, 250, 290, COUNT)  # pieces without a shard's begin, and with three


@pytest.fixture(params=[np.float16, np.float32, np.float64])
def path(request, tmp_path):
    ids, old, _ = tiny.vectors(COUNT)
    found = EmbeddingSet.of(old.astype(request.param), ids, meta={})
    folder = found.write(tmp_path / "old")
    found.write_companions(folder, checksums.shards_of(folder / "vectors.npy", SHARD))
    return folder


def compared(path) -> list[int]:
    """Take all pieces; return the numbers of those that found damage."""
    source, found = open_gallery(path), []
    for number, (start, stop) in enumerate(itertools.pairwise(BORDERS)):
        shards = ShardsOfPiece(source, Piece(number, start, stop, range(0)))
        read = source.read_exactly if shards.stored else source.read
        try:
            for first in range(start, stop, BLOCK):
                shards.take(first, read(first, min(first + BLOCK, stop)))
            shards.finish(BLOCK)
        except UserError as error:
            assert "is damaged in shard" in str(error)
            found.append(number)
    return found


@pytest.mark.parametrize(
    ("row", "piece"), [(0, 0), (69, 0), (70, 2), (139, 2), (140, 3), (209, 3), (279, 3), (280, 4)]
)
def test_damage_is_found_by_one_piece(path, row, piece):
    assert compared(path) == []
    rows = np.load(path / "vectors.npy", mmap_mode="r+")
    rows[row, 0] += 1
    rows.flush()
    assert compared(path) == [piece]


def test_rows_that_are_set_aside(path):
    """Their shards are compared, too, though the gallery does not give these rows."""
    ids = np.load(path / "ids.npy")
    ids[5] = ids[4]
    np.save(path / "ids.npy", ids)
    source = open_gallery(path, duplicates="first")
    assert len(source) == COUNT - 1
    shards = ShardsOfPiece(source, Piece(0, 0, len(source), range(0)))
    shards.finish(BLOCK)
    rows = np.load(path / "vectors.npy", mmap_mode="r+")
    rows[299] += 1
    rows.flush()
    with pytest.raises(UserError, match="is damaged in shard 4"):
        shards.finish(BLOCK)
