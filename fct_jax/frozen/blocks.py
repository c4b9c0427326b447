"""Equal blocks of rows, and a pipeline that computes one block while another is fetched."""

import numpy as np


def row_blocks(arrays, batch_size: int):
    """Yield equal runs of rows of the arrays; float16 memory maps become float32 blocks."""
    for start in range(0, len(arrays[0]), batch_size):
        blocks = [np.asarray(array[start : start + batch_size]) for array in arrays]
        yield [b if b.dtype == np.uint8 else b.astype(np.float32, copy=False) for b in blocks]


def pipelined(function, blocks, batch_size: int):
    """Yield ``function(*block)`` on the host; the next block runs while one is fetched.

    A block with fewer rows is padded to ``batch_size``, so that one shape is compiled.
    """
    waiting = None
    for block in blocks:
        rows = len(block[0])
        if rows < batch_size:
            block = [np.concatenate([b, np.repeat(b[-1:], batch_size - rows, 0)]) for b in block]
        result = function(*block), rows
        if waiting is not None:
            yield _fetch(*waiting)
        waiting = result
    if waiting is not None:
        yield _fetch(*waiting)


def _fetch(result, rows: int):
    import jax  # late: rows alone need none of it

    return jax.tree.map(lambda array: np.asarray(array)[:rows], result)
