"""Embed images with a run, or transform an EmbeddingSet; set the keys on the command line.

  python -m fct_jax.embed --config configs/embed.py --workdir embeddings/old \
      --config.model=runs/digits/old --config.split=validation

Large sets are made in shards of config.shard_size rows: a run that was killed goes on, by the same
command, at the next shard, and several processes (--distributed) share the shards.
"""

from fct_jax import config as defaults


def get_config():
    return defaults.embed()
