"""The embed command, which makes an EmbeddingSet from a config."""

from pathlib import Path

from ml_collections import ConfigDict

from fct_jax import config as configs
from fct_jax import data
from fct_jax.embed.images import embed_images, source_config
from fct_jax.embed.statistics import num_known_classes
from fct_jax.embed.transform import transform_set
from fct_jax.errors import UserError
from fct_jax.frozen.model import Transformer, load_model
from fct_jax.runtime import processes
from fct_jax.runtime.workdir import usable
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.partial import remove_leftover


def embed(config: ConfigDict, out) -> EmbeddingSet:
    """Embed ``config.data``, or transform ``config.old``, with ``config.model``.

    All processes of a run share the work. A killed run resumes at the next shard.

    Args:
      config: a config with the keys of ``fct_jax.config.embed``.
      out: the EmbeddingSet to make. Raises UserError if it exists.
    """
    config = configs.at_home(config)
    configs.check(config)
    out = usable(out)
    if Path(out).exists():
        remove_leftover(out)
        raise UserError(f"{out} exists already; nothing was overwritten")
    if not config.model:
        raise UserError("config.model is empty; give a run, or module:function")
    model = load_model(config.model)
    if isinstance(model, Transformer):
        if config.class_statistics:
            raise UserError("class statistics are of a backbone, not of a transformation")
        if not config.old:
            raise UserError(
                f"{config.model} is a transformation; give config.old, an EmbeddingSet to transform"
            )
        side = EmbeddingSet.read(config.side) if config.side else None
        old = EmbeddingSet.read(config.old)
        made = transform_set(model, old, side, out, config.batch_size, config.shard_size)
    else:
        if not (config.data.name or model.description["data"]):
            raise UserError(f"config.data.name is empty; say which images {config.model} embeds")
        where = config.data if config.data.name else ConfigDict(model.description["data"])
        where = source_config(where, config.split)
        made = embed_images(
            model,
            data.open_source(where, config.split),
            out,
            batch_size=config.batch_size,
            shard_size=config.shard_size,
            workers=where.workers,
            on_error=where.on_error,
            meta={"data": where.to_dict(), "split": config.split},
            num_classes=num_known_classes(model) if config.class_statistics else None,
        )
    processes.say(f"{out}: {len(made)} vectors of dimension {made.dim}, model {made.fingerprint}")
    return made
