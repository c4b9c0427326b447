"""Evaluate old, new and transformed embeddings; draw the backfilling curves.

  python -m fct_jax.evaluate --config configs/digits_evaluate.py --workdir runs/digits/report

The work directory receives report.html for the browser, report.md, report.json and curves.png.
"""

from fct_jax.runtime import starting  # noqa: F401, I001 - first, for an early Ctrl-C

from absl import flags

from fct_jax import config as defaults
from fct_jax.runtime import command_line as cli

_CONFIG = cli.define_config(defaults.evaluate)
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the report to make")
cli.define_process_flags()
flags.mark_flag_as_required("workdir")


def main() -> None:
    """Run the command; imports are late, so --help and mistakes in flags are answered at once."""
    from fct_jax.evaluate.command import evaluate

    evaluate(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(
        main,
        __doc__,
        "stopped; finished embeddings are kept, and the same command starts the evaluation again",
    )
