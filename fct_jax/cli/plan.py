"""``fct-jax plan``."""

from fct_jax.cli import DONE

FUNCTION = "fct_jax.upgrade.migration.upgrade:Upgrade.plan"
EXAMPLE = """
Choose which items to re-embed, in which order, and how many; forecast the resulting quality. The
directory of the upgrade remembers map, gallery and settings for later commands.

  fct-jax plan upgrade --map map --gallery gallery_old --budget-items 400
  fct-jax plan upgrade --map map --gallery qdrant://host:6333/items --budget-items 400
  fct-jax plan upgrade --map map \\
      --gallery 'postgresql://me@host/db?table=items&id=id&vector=embedding'

A gallery is a file or folder of vectors, or the URI of a store; its password or key comes from the
environment (PGPASSWORD, QDRANT_API_KEY, MILVUS_TOKEN, AWS_*).
"""


def add_gallery(parser) -> None:
    """Add the arguments that name a map and a gallery, which an upgrade remembers."""
    parser.add_argument("upgrade", metavar="UPGRADE", help="directory of the upgrade")
    parser.add_argument("--map", help="a map that `fct-jax fit` made, a run of a transformation, "
                        "or identity for a backward-compatible model")  # fmt: skip
    parser.add_argument("--gallery", help="the old gallery, which is never changed: files, or the "
                        "URI of a store")  # fmt: skip
    parser.add_argument("--probe", help="folder of queries for measuring quality")
    parser.add_argument("--batch-size", type=int, help="number of vectors translated together")
    parser.add_argument("--id-column", help="name of the id column; found if not given")
    parser.add_argument("--vector-column", help="name of the vector column; found if not given")
    parser.add_argument("--on-bad", choices=("quarantine", "raise"), help="set unusable vectors "
                        "aside (at most one in a thousand), or stop at the first")  # fmt: skip
    parser.add_argument("--duplicates", choices=("raise", "first", "last"), help="keep the first "
                        "or the last row of a repeated id, or stop")  # fmt: skip
    parser.add_argument("--in-place", action="store_true", help="give each row of a store a second "
                        "vector, instead of making a sibling with rows of its own")  # fmt: skip


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    add_gallery(parser)
    parser.add_argument("--order", help="order of re-embedding: uncertainty, random, …")
    parser.add_argument("--traffic", help="traffic of the items: CSV, JSON lines, Parquet or .npy "
                        "with id and count, or a log of ids")  # fmt: skip
    parser.add_argument("--budget-items", type=int, help="largest number of items to re-embed")
    parser.add_argument("--budget-money", type=float, help="largest amount to spend")
    parser.add_argument("--target-quality", type=float, help="re-embed until the forecast reaches "
                        "this quality")  # fmt: skip
    parser.add_argument("--items-per-second", type=float, help="speed of the new model")
    parser.add_argument("--cost-per-1000", type=float, help="price of 1,000 new embeddings")
    parser.add_argument("--cost-per-core-hour", type=float, help="price of an hour of a core, for "
                        "the cost of translating")  # fmt: skip
    parser.add_argument("--serve", help="way of serving that the forecast is made for")
    parser.add_argument("--seed", type=int, help="seed of a random order")


def run(arguments):
    """Plan, show the forecast, and return (result, exit code)."""
    from fct_jax.upgrade import Upgrade

    given = vars(arguments)
    workdir = given.pop("upgrade")
    made = Upgrade(workdir).plan(**given)
    print(f"{workdir}/plan: {len(made):,} of {made.description['count']:,} items, "
          f"{made.description['cut']}")  # fmt: skip
    print(f"Next: fct-jax apply {workdir} --reembed NEW")
    return {"items": len(made), **made.description}, DONE
