"""An EmbeddingSet of old vectors through a transformation to the new model's space."""

import json
from pathlib import Path

import jax
import numpy as np

from fct_jax.errors import UserError
from fct_jax.frozen.devices import run_batches
from fct_jax.frozen.model import Transformer
from fct_jax.storage import checksums
from fct_jax.storage.embedding_set import EmbeddingSet, check_paired
from fct_jax.storage.shards import make_set, whole_batches


def transform_set(
    transformer: Transformer,
    old: EmbeddingSet,
    side: EmbeddingSet | None,
    out,
    batch_size: int = 4096,
    shard_size: int = checksums.SHARD_SIZE,
) -> EmbeddingSet:
    """Write the transformed set, completely or not at all; memory does not grow with its size.

    All processes of a run call it and share the work; a killed run resumes at the next shard.

    Args:
      transformer: the frozen transformation.
      old: (N, do) vectors of the old model.
      side: (N, ds) vectors of the side-information model; None where none was trained with.
      out: the directory to make.
      batch_size: rows that a device works on together.
      shard_size: rows after which work is recorded, rounded up to whole batches.

    Raises:
      UserError: other fingerprints, sizes or items than the transformation was trained on; ``out``
        exists, or another run is making it, or it was begun with another model or other sets.
    """
    side = checked_inputs(transformer, old, side)
    shard_size = whole_batches(shard_size, batch_size)
    batch_size = min(batch_size, len(old))
    given = [old] if side is None else [old, side]
    shapes = {"vectors": (transformer.dim,)}
    if _gives_uncertainty(transformer, [found.dim for found in given]):
        shapes["uncertainty"] = ()
    meta = {
        "fingerprint": transformer.new_fingerprint,  # the space the vectors live in
        "transformation": transformer.fingerprint,
        "old_fingerprint": old.fingerprint,
    }

    def blocks(spans: list[range]):
        batches = _batches([found.vectors for found in given], spans, batch_size)
        for rows, (vectors, uncertainty) in run_batches(transformer, batches, batch_size):
            yield (rows, vectors) if uncertainty is None else (rows, vectors, uncertainty)

    return make_set(
        out,
        {**meta, "inputs": [_identity(found) for found in given], "batch_size": batch_size},
        len(old),
        shapes,
        shard_size,
        blocks,
        lambda skipped: (old.ids, old.labels, meta),
        what=f"transforming {Path(out).name}",
        unit="vectors",
    )


def _batches(vectors: list[np.ndarray], spans: list[range], batch_size: int):
    """Yield (rows, their vectors in float32) of the spans, from memory maps as well."""
    for span in spans:
        for start in range(span.start, span.stop, batch_size):
            stop = min(start + batch_size, span.stop)
            yield (
                np.arange(start, stop),
                [np.asarray(given[start:stop], np.float32) for given in vectors],
            )


def _gives_uncertainty(transformer: Transformer, dims: list[int]) -> bool:
    inputs = [jax.ShapeDtypeStruct((1, dim), np.float32) for dim in dims]
    return jax.eval_shape(transformer.run, *inputs)[1] is not None


def _identity(found: EmbeddingSet) -> dict:
    """Return facts that identify a set, without reading its vectors from disk."""
    if not isinstance(found.vectors, np.memmap):
        vectors = checksums.text(checksums.update(0, found.vectors))
    elif "shards" in found.meta:
        vectors = [shard["checksum"] for shard in found.meta["shards"]]
    else:
        vectors = Path(found.vectors.filename).stat().st_mtime_ns
    known = json.dumps([found.fingerprint, vectors]).encode()
    content = checksums.update(checksums.update(0, np.frombuffer(known, np.uint8)), found.ids)
    return {"name": found.name, "content": checksums.text(content)}


def checked_inputs(
    transformer: Transformer, old: EmbeddingSet, side: EmbeddingSet | None
) -> EmbeddingSet | None:
    """Return the needed side set, or None. Raises UserError if a set does not match."""
    _check_model(old, transformer.old_fingerprint, "old")
    _check_dim(old, transformer.description["old_dim"], "old")
    if not transformer.needs_side:
        return None
    if side is None:
        raise UserError("this transformation was trained with side information; give config.side")
    _check_model(side, transformer.side_fingerprint, "side")
    _check_dim(side, transformer.description["side_dim"], "side")
    check_paired(old, side)
    return side


def _check_model(found: EmbeddingSet, trained: str | None, role: str) -> None:
    if found.fingerprint and trained and found.fingerprint != trained:
        raise UserError(
            f"the transformation was trained on {role} vectors of model {trained}, and "
            f"config.{role}={found.name} comes from model {found.fingerprint}: give another "
            f"transformation, or the vectors of its own {role} model"
        )


def _check_dim(found: EmbeddingSet, dim: int, role: str) -> None:
    if found.dim != dim:
        raise UserError(
            f"{found.name} has dimension {found.dim}; "
            f"the transformation takes {role} embeddings of {dim}"
        )
