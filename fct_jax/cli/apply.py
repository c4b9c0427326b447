"""``fct-jax apply``."""

from fct_jax.cli import DONE
from fct_jax.cli.plan import add_gallery

FUNCTION = "fct_jax.upgrade.migration.upgrade:Upgrade.apply"
EXAMPLE = """
Translate the gallery to the new space, then take re-embedded vectors batch by batch. Killed or
interrupted at any moment, the same command goes on; the old gallery is never changed.

  fct-jax apply upgrade --reembed vectors_new          # or mymodel:embed_ids
  fct-jax apply upgrade --map map --gallery gallery    # translate only, without a plan
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    add_gallery(parser)
    parser.add_argument("--reembed", help="where new vectors come from: an EmbeddingSet, or "
                        "module:function of ids; translate only if not given")  # fmt: skip
    parser.add_argument("--batch-items", type=int, help="items that are re-embedded together")
    parser.add_argument("--max-batches", type=int, help="stop after so many, to go on later")
    parser.add_argument("--unchecked", action="store_true", help="go on although no known answers "
                        "can be checked")  # fmt: skip


def run(arguments):
    """Apply, and return (result, exit code)."""
    from fct_jax.upgrade import Upgrade

    given = vars(arguments)
    workdir = given.pop("upgrade")
    made = Upgrade(workdir).apply(**given)
    print(f"{made.name}: {len(made):,} vectors, {made.meta['state']}")
    return {"gallery": made.name, "count": len(made), **made.meta}, DONE
