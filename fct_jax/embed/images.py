"""Images through a frozen backbone to an EmbeddingSet."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fct_jax import data
from fct_jax.callable_model import CallableModel
from fct_jax.data.subset import for_validation
from fct_jax.embeddings import EmbeddingSet, check_paired, new_directory
from fct_jax.errors import UserError
from fct_jax.frozen import Embedder, Transformer, is_model, load_model, pipelined
from fct_jax.progress import track


def embed_images(
    embedder: Embedder | CallableModel,
    source,
    out,
    *,
    preprocessing=None,
    view: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
    workers: int = 0,
    on_error: str = "raise",
    meta: dict | None = None,
) -> EmbeddingSet:
    """Embeds a source and writes an EmbeddingSet, whole or not at all.

    Args:
      embedder: the frozen model.
      source: of ``data.open_source``.
      out: the directory to make.
      preprocessing: instead of the embedder's own (augmentation of a view, say).
      view: number of an augmented view; None: as for evaluation.
      seed: of the views.
      batch_size: images embedded together.
      workers: processes that decode.
      on_error: "raise", or "skip" to leave out unreadable images.
      meta: more entries for ``meta.json``.
    """
    batches = data.batches(
        source,
        preprocessing or embedder.preprocessing,
        batch_size=batch_size,
        train=False,
        view=view,
        seed=seed,
        workers=workers,
        on_error=on_error,
    )
    order = []  # positions in the source, batch by batch
    done = 0
    with new_directory(out) as folder:
        vectors = np.lib.format.open_memmap(
            folder / "vectors.npy", "w+", np.float32, (len(source), embedder.dim)
        )
        results = pipelined(embedder.run, _inputs(batches, order, view is not None), batch_size)
        for block in track(results, f"embedding {Path(out).name}", len(source), "images", size=len):
            vectors[done : done + len(block)] = block
            done += len(block)
        vectors.flush()
        if done == 0:
            raise UserError(f"no image of {len(source)} could be read")
        if done < len(source):
            # Unreadable images were skipped: keep only the rows that exist.
            print(f"{len(source) - done} of {len(source)} images were skipped")
            np.save(folder / "vectors.npy", np.array(vectors[:done]))
        rows = np.concatenate(order)
        description = {
            "fingerprint": embedder.fingerprint,
            "skipped": len(source) - done,
            **(meta or {}),
        }
        made = EmbeddingSet(vectors[:done], source.ids[rows], source.labels[rows], meta=description)
        made.write_companions(folder)
    return EmbeddingSet.read(out)


def _inputs(batches, order: list, flipped: bool):
    """What the model takes of each batch; the positions are put into ``order``."""
    for batch in batches:
        order.append(np.asarray(batch["index"]))
        yield [batch["image"], batch["flip"]] if flipped else [batch["image"]]


def embeddings_of(
    where: str,
    role: str,
    config: ConfigDict,
    split: str,
    *,
    view: int | None = None,
) -> EmbeddingSet:
    """The EmbeddingSet in a directory, or the embeddings that its run gives of ``config.data``.

    A run's embeddings are made once and kept in ``RUN/embeddings``, those of a Python function in
    a folder of its fingerprint below ``config.callable_embeddings``; another stage that asks for
    the same ones reads them.

    Args:
      where: directory of an EmbeddingSet or of a run, or "module:function".
      role: "old", "new" or "side", for messages.
      config: with ``data``, ``preprocessing`` (where a view is asked for), ``seed`` and
        ``callable_embeddings``.
      split: "train" or "validation".
      view: number of an augmented view; None: as for evaluation.
    """
    if not where:
        raise UserError(f"config.{role} is empty; give the directory of a run or an EmbeddingSet")
    if not is_model(where):
        if not (Path(where) / "vectors.npy").is_file():
            reason = (
                "its training has not ended"
                if (Path(where) / "config.json").is_file()
                else ("it holds neither an exported model nor vectors.npy")
            )
            raise UserError(f"config.{role}={where} is no run and no EmbeddingSet: {reason}")
        return EmbeddingSet.read(where)
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
    if not folder.is_dir():
        embed_images(
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
    return EmbeddingSet.read(folder)


def source_config(config: ConfigDict, split: str) -> ConfigDict:
    """The data config of a split: a class subset is for training, all classes for validation."""
    if split == "train":
        return config
    config = config.copy_and_resolve_references()
    config.classes = ""
    # A benchmark's queries and gallery have classes of their own.
    config.subset = for_validation(config.get("subset", "")) if split == "validation" else ""
    return config


def check_all_paired(sets: list[EmbeddingSet]) -> None:
    """All sets hold the same items in the same order. Raises UserError."""
    for other in sets[1:]:
        check_paired(sets[0], other)
