"""Train a model.

  python -m fct_jax.train --config configs/digits_backbone_old.py --workdir runs/digits/old

Any key of the config can be set on the command line, for example --config.optimizer.lr=0.5;
fct_jax/config.py and config_sections.py explain all of them. A stopped run resumes when you
repeat the command. With --distributed several processes, on
one machine or many, train as one: docs/pods.md.
"""

from fct_jax.runtime import starting  # noqa: F401, I001 - first, for an early Ctrl-C

from absl import flags

from fct_jax.runtime import command_line as cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run")
_ALLOW = flags.DEFINE_bool(
    "allow_config_change", False, "continue a run although its config has changed"
)
cli.define_process_flags()
flags.mark_flag_as_required("workdir")


def main() -> None:
    """Run the command; imports are late, so --help and mistakes in flags are answered at once."""
    from fct_jax.train.loop import train

    train(_CONFIG.value, _WORKDIR.value, _ALLOW.value)


if __name__ == "__main__":
    cli.run(main, __doc__)
