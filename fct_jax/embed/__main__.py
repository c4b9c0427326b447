"""Embed images with a run's model, or move an EmbeddingSet to the new space.

  python -m fct_jax.embed --workdir embeddings/old \\
      --config.model=runs/digits/old --config.split=validation

  python -m fct_jax.embed --workdir embeddings/moved \\
      --config.model=runs/digits/fastfill --config.old=embeddings/old

The work directory becomes an EmbeddingSet: vectors.npy, ids.npy, labels.npy,
uncertainty.npy (FastFill) and meta.json. A run that was killed goes on, by the same command, at
the next shard (config.shard_size); with --distributed several processes share the shards.
"""

from fct_jax.runtime import starting  # noqa: F401, I001 - first, for an early Ctrl-C

from absl import flags

from fct_jax import config as defaults
from fct_jax.runtime import command_line as cli

_CONFIG = cli.define_config(defaults.embed)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the EmbeddingSet to make")
cli.define_process_flags()
flags.mark_flag_as_required("workdir")


def main() -> None:
    """Run the command; imports are late, so --help and mistakes in flags are answered at once."""
    from fct_jax.embed.command import embed

    embed(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, __doc__)
