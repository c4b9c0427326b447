"""Embed images with a frozen backbone into an EmbeddingSet."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fct_jax import data
from fct_jax.data.subset import for_validation
from fct_jax.embed.statistics import write_missing
from fct_jax.errors import UserError
from fct_jax.frozen.callable_model import CallableModel
from fct_jax.frozen.devices import run_batches
from fct_jax.frozen.model import Embedder, Transformer, load_model
from fct_jax.runtime import processes
from fct_jax.storage import checksums
from fct_jax.storage.embedding_set import EmbeddingSet, check_paired
from fct_jax.storage.named import is_model, vectors_of
from fct_jax.storage.partial import remove_leftover, wait_for
from fct_jax.storage.shards import make_set, whole_batches

# Keys of config.data that affect how images are read, not which ones.
_HOW = ("on_error", "workers", "in_memory")


def embed_images(
    embedder: Embedder | CallableModel,
    source,
    out,
    *,
    preprocessing=None,
    view: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    shard_size: int = checksums.SHARD_SIZE,
    workers: int = 0,
    on_error: str = "raise",
    meta: dict | None = None,
    num_classes: int | None = None,
) -> EmbeddingSet:
    """Embed a source and write an EmbeddingSet, whole or not at all.

    All processes of a run call this and share the work; a killed run resumes at the next shard.
    The result depends neither on the number of processes nor on interruptions.

    Args:
      embedder: the frozen model.
      source: as ``data.open_source`` returns it.
      out: the directory to make.
      preprocessing: replaces the embedder's own (for the augmentation of a view, say).
      view: number of an augmented view; None: the images as for evaluation.
      seed: seed of the views.
      batch_size: images that a device embeds together.
      shard_size: number of images after which work is recorded, rounded up to whole batches.
      workers: processes that decode.
      on_error: "raise", or "skip" to leave out unreadable images.
      meta: more entries for ``meta.json``.
      num_classes: C, to also write the statistics of the first C classes; None: no statistics.

    Raises:
      UserError: ``out`` exists, another run is making it, or it was begun with another model or
        other data; or an image is unreadable.
    """
    preprocessing = preprocessing or embedder.preprocessing
    meta = {"fingerprint": embedder.fingerprint, **(meta or {})}
    which = {key: value for key, value in meta.get("data", {}).items() if key not in _HOW}
    plan = {
        **{key: value for key, value in meta.items() if key != "data"},
        **{f"data.{key}": value for key, value in which.items()},
        **{f"preprocessing.{k}": v for k, v in dataclasses.asdict(preprocessing).items()},
        "source": source.name,
        "ids": checksums.text(checksums.update(0, source.ids)),
        "view": view,
        "seed": seed,
        "batch_size": batch_size,
    }

    def blocks(spans: list[range]):
        batches = data.batches(
            source,
            preprocessing,
            batch_size=batch_size,
            train=False,
            view=view,
            seed=seed,
            workers=workers,
            on_error=on_error,
            indices=np.concatenate(spans),
        )
        try:
            yield from run_batches(embedder, _inputs(batches, view is not None), batch_size)
        finally:
            batches.close()

    def companions(skipped: list[int]):
        if skipped:
            print(f"{len(skipped)} of {len(source)} images were skipped")
        ids, labels = (np.delete(values, skipped) for values in (source.ids, source.labels))
        return ids, labels, {**meta, "skipped": len(skipped)}

    def add_statistics(folder: Path) -> None:
        write_missing(folder, num_classes)

    return make_set(
        out,
        plan,
        len(source),
        {"vectors": (embedder.dim,)},
        whole_batches(shard_size, batch_size),
        blocks,
        companions,
        what=f"embedding {Path(out).name}",
        unit="images",
        add_files=None if num_classes is None else add_statistics,
    )


def _inputs(batches, flipped: bool):
    """Yield (positions in the source, the model's input) of each batch."""
    for batch in batches:
        if len(batch["index"]):  # empty if all of its images were skipped
            images = [batch["image"], batch["flip"]] if flipped else [batch["image"]]
            yield np.asarray(batch["index"]), images


def embeddings_of(
    where: str,
    role: str,
    config: ConfigDict,
    split: str,
    *,
    view: int | None = None,
) -> EmbeddingSet:
    """Return the vectors at ``where``, or the embeddings of ``config.data`` by that model.

    A run's embeddings are made once and kept in ``RUN/embeddings``, those of a Python function in
    a folder named by its fingerprint below ``config.callable_embeddings``; other stages that need
    the same embeddings read them from there.

    Args:
      where: a run, "module:function", or vectors in any form that `vectors_of` accepts.
      role: "old", "new", "side" or "teacher", for messages.
      config: config with ``data``, ``preprocessing`` (needed for a view), ``seed`` and
        ``callable_embeddings``.
      split: "train" or "validation".
      view: number of an augmented view; None: the images as for evaluation.
    """
    if not is_model(where):
        return vectors_of(where, f"config.{role}")
    embedder = load_model(where)
    if isinstance(embedder, Transformer):
        raise UserError(f"config.{role}={where} is a transformation; give a backbone's run")
    wanted = source_config(config.data, split)
    meta = {"data": wanted.to_dict(), "split": split, "view": view}
    preprocessing = embedder.preprocessing
    if view is not None:
        preprocessing = dataclasses.replace(
            preprocessing,
            train_crop=config.preprocessing.train_crop,
            flip=config.preprocessing.flip,
        )
        meta |= {"augmentation": [preprocessing.train_crop, preprocessing.flip, config.seed]}
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{wanted.name.replace(':', '-')}-{split}-{digest}"
    kept = Path(where) / "embeddings"
    if isinstance(embedder, CallableModel):
        owner = f"{embedder.name.replace(':', '.')}-{embedder.fingerprint}"
        kept = Path(config.callable_embeddings) / owner
    folder = kept / (name if view is None else f"{name}-view{view}")
    if not processes.from_writer(folder.is_dir, "is it embedded"):
        return embed_images(
            embedder,
            data.open_source(wanted, split),
            folder,
            preprocessing=preprocessing,
            view=view,
            seed=config.seed,
            workers=wanted.workers,
            on_error=wanted.on_error,
            meta=meta,
        )
    remove_leftover(folder)
    wait_for(folder / "vectors.npy")
    return EmbeddingSet.read(folder)


def source_config(config: ConfigDict, split: str) -> ConfigDict:
    """Return a split's data config: a subset's classes for training, all classes for validation."""
    if split == "train":
        return config
    config = config.copy_and_resolve_references()
    config.classes = ""
    # The queries and gallery of a benchmark have their own classes.
    config.subset = for_validation(config.get("subset", "")) if split == "validation" else ""
    return config


def check_all_paired(sets: list[EmbeddingSet]) -> None:
    """Raise UserError unless all sets hold the same items in the same order."""
    for other in sets[1:]:
        check_paired(sets[0], other)
