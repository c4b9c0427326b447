"""Evaluate old, new and transformed embeddings; draw the backfilling curves.

  python -m fct_jax.evaluate --config configs/digits_evaluate.py --workdir runs/digits/report

The work directory receives results.json, table.md and curve.png.
"""

from absl import flags
from ml_collections import config_flags

from fct_jax.runtime import command_line as cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "config file; see configs/")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the report to make")
cli.define_process_flags()
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Imports late, so that --help and mistakes in flags are answered at once."""
    from fct_jax.evaluate.command import evaluate

    evaluate(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, __doc__)
