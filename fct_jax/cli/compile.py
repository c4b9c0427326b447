"""``fct-jax compile``."""

import ast

from fct_jax.cli import DONE, MISTAKE
from fct_jax.errors import UserError

EXAMPLE = """
Compile a config's programs with the real TPU compiler, on a machine without a TPU: the memory that
a chip needs, the operations, the data between chips, and an estimate of the time. Neither the data
set nor a trained model need be there.

  fct-jax compile imagenet_backbone_new --topology v5e:4x4 compute_dtype=bfloat16
  fct-jax compile ms1m_compatible --topology v5e:4x4 method=none mesh.model=4 --price 1.2

Times are what the chip's published peaks allow, with every byte that the compiled schedule moves to
or from the chip's main memory: a bound to compare settings by, not a measurement. Needs the extra
tpu.

Exit code: 0 if everything fits, 1 if the training step does not.
"""

MIXED = True  # changes of the config may stand before and after the options


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("config", metavar="NAME_OR_FILE",
                        help="a packaged config, or a config file")  # fmt: skip
    parser.add_argument("changes", nargs="*", metavar="key=value", help="changes of the config")
    parser.add_argument("--topology", required=True, help="CHIP:AxB, such as v5e:4x4 or v4:2x2x2")
    parser.add_argument(
        "--price",
        type=float,
        help="price of a chip for an hour, to print what an epoch and a run cost",
    )
    parser.add_argument("--images", type=int, help="training images (default: the data set's)")
    parser.add_argument("--classes", type=int, help="their classes (default: the data set's)")
    parser.add_argument("--old-dim", type=int, help="size of the old model's embeddings")
    parser.add_argument("--new-dim", type=int, help="size of the new model's embeddings")
    parser.add_argument("--side-dim", type=int, help="size of the side information")


def run(arguments):
    """Compile, print the figures, and return (result, exit code)."""
    from fct_jax.compiling.chips import cpu_only

    cpu_only()  # before anything asks for devices
    from fct_jax import config as configs
    from fct_jax.compiling import compile_config
    from fct_jax.compiling.report import table
    from fct_jax.compiling.settings import nearest_that_fits
    from fct_jax.compiling.stand_ins import Given
    from fct_jax.runtime.config_files import find_config, read_config
    from fct_jax.runtime.progress import console

    options = vars(arguments)
    price = options.pop("price", None)
    topology = options.pop("topology")
    config = read_config(find_config(options.pop("config")))
    change(config, options.pop("changes", ()))
    configs.check(config)
    given = Given(**options)
    found = list(compile_config(config, topology, given, console.print))
    table(found, config, topology, price).show()
    result = {"topology": topology, "programs": [each.to_json() for each in found]}
    if found[0].fits:
        return result, DONE
    nearest = nearest_that_fits(config, topology, given, console.print)
    if nearest is None:
        print("the training step does not fit, under no setting that was tried")
        return result, MISTAKE
    changes, step = nearest
    said = " ".join(f"{key}={value}" for key, value in changes.items())
    print(f"the training step does not fit; nearest that does: {said}")
    table([step], config, topology, price).show()
    return {**result, "nearest": {"changes": changes, "program": step.to_json()}}, MISTAKE


def change(config, words) -> None:
    """Change a config by ``key=value`` words. Raises UserError for a word that is none."""
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"{word!r} is no key=value")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({key: value})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{word!r} does not fit the config: {error}") from None
