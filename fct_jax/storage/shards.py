"""One EmbeddingSet, made in shards by all processes."""

from collections.abc import Callable, Iterable
from pathlib import Path

from fct_jax.errors import UserError
from fct_jax.runtime.progress import track
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.partial import PartialSet
from fct_jax.storage.rows import Shapes


def make_set(
    out,
    plan: dict,
    count: int,
    shapes: Shapes,
    shard_size: int,
    blocks: Callable[[list[range]], Iterable[tuple]],
    companions: Callable[[list[int]], tuple],
    *,
    what: str,
    unit: str,
    add_files: Callable[[Path], None] | None = None,
) -> EmbeddingSet:
    """Make a set, or resume one; all processes call this with the same arguments.

    Args:
      out, plan, count, shapes, shard_size: as for ``PartialSet``.
      blocks: from the rows of shards, ascending, to what is written: as for ``PartialSet.write``.
      companions, add_files: as for ``PartialSet.finish``.
      what, unit: texts of the progress bar.
    """
    with PartialSet(out, plan, count, shapes, shard_size) as partial:
        mine = partial.share()
        spans = [partial.span(number) for number in mine]
        if mine:
            rows = sum(map(len, spans))
            partial.write(mine, track(blocks(spans), what, rows, unit, lambda b: len(b[0])))
        partial.finish(companions, add_files)
    return EmbeddingSet.read(out, verify=False)  # just verified


def whole_batches(shard_size: int, batch_size: int) -> int:
    """Return the shard size rounded up to batches, so that it does not change their boundaries."""
    for name, size in (("batch_size", batch_size), ("shard_size", shard_size)):
        if size < 1:
            raise UserError(f"config.{name} must be at least 1, not {size}")
    return -(-shard_size // batch_size) * batch_size
