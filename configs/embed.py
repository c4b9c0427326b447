"""Embed images with a run, or transform an EmbeddingSet; set the keys on the command line.

  python -m fct_jax.embed --config configs/embed.py --workdir embeddings/old \
      --config.model=runs/digits/old --config.split=validation
"""

from fct_jax import config as defaults


def get_config():
    return defaults.embed()
