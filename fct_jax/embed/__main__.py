"""Embed images with a run's model, or move an EmbeddingSet to the new space.

  python -m fct_jax.embed --config configs/embed.py --workdir embeddings/old \\
      --config.model=runs/digits/old --config.split=validation

  python -m fct_jax.embed --config configs/embed.py --workdir embeddings/moved \\
      --config.model=runs/digits/fastfill --config.old=embeddings/old

The work directory becomes an EmbeddingSet: vectors.npy, ids.npy, labels.npy,
uncertainty.npy (FastFill) and meta.json. A run that was killed goes on, by the same command, at
the next shard (config.shard_size); with --distributed several processes share the shards.
"""

from absl import flags
from ml_collections import config_flags

from fct_jax.runtime import command_line as cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file; see configs/embed.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the EmbeddingSet to make")
cli.define_process_flags()
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Imports late, so that --help and mistakes in flags are answered at once."""
    from fct_jax.embed.command import embed

    embed(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, __doc__)
