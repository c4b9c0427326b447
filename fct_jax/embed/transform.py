"""An EmbeddingSet of old vectors through a transformation to the new model's space."""

from pathlib import Path

import numpy as np

from fct_jax.embeddings import EmbeddingSet, check_fingerprint, check_paired, new_directory
from fct_jax.errors import UserError
from fct_jax.frozen import Transformer
from fct_jax.progress import track


def transform_set(
    transformer: Transformer,
    old: EmbeddingSet,
    side: EmbeddingSet | None,
    out,
    batch_size: int = 4096,
) -> EmbeddingSet:
    """Writes the transformed set, whole or not at all; memory does not grow with its size.

    Args:
      transformer: the frozen transformation.
      old: (N, do) vectors of the old model.
      side: (N, ds) vectors of the side-information model; None where none was trained with.
      out: the directory to make.
      batch_size: rows worked through together.

    Raises:
      UserError: other fingerprints, sizes or items than the transformation was trained on.
    """
    side = checked_inputs(transformer, old, side)
    uncertainty = np.empty(len(old), np.float32)
    with new_directory(out) as folder:
        vectors = np.lib.format.open_memmap(
            folder / "vectors.npy", "w+", np.float32, (len(old), transformer.dim)
        )
        start, given = 0, False
        blocks = transformer.blocks(old.vectors, None if side is None else side.vectors, batch_size)
        for block, log_variance in track(
            blocks, f"transforming {Path(out).name}", len(old), "vectors", lambda b: len(b[0])
        ):
            stop = start + len(block)
            vectors[start:stop] = block
            if log_variance is not None:
                uncertainty[start:stop], given = log_variance, True
            start = stop
        vectors.flush()
        made = EmbeddingSet(
            vectors,
            old.ids,
            old.labels,
            uncertainty if given else None,
            meta={
                "fingerprint": transformer.new_fingerprint,  # the space the vectors live in
                "transformation": transformer.fingerprint,
                "old_fingerprint": old.fingerprint,
            },
        )
        made.write_companions(folder)
    return EmbeddingSet.read(out)


def checked_inputs(
    transformer: Transformer, old: EmbeddingSet, side: EmbeddingSet | None
) -> EmbeddingSet | None:
    """The side set that it takes, or None. Raises UserError where a set does not fit."""
    check_fingerprint(old, transformer.old_fingerprint, "old")
    _check_dim(old, transformer.description["old_dim"], "old")
    if not transformer.needs_side:
        return None
    if side is None:
        raise UserError("this transformation was trained with side information; give config.side")
    check_fingerprint(side, transformer.side_fingerprint, "side")
    _check_dim(side, transformer.description["side_dim"], "side")
    check_paired(old, side)
    return side


def _check_dim(found: EmbeddingSet, dim: int, role: str) -> None:
    if found.dim != dim:
        raise UserError(
            f"{found.name} has dimension {found.dim}; "
            f"the transformation takes {role} embeddings of {dim}"
        )
