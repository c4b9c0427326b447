"""``fct-jax fit``."""

from fct_jax.cli import DONE
from fct_jax.cli.columns import add_columns, read_columns
from fct_jax.cli.images import add_images, embedded
from fct_jax.cli.parser import names

FUNCTION = "fct_jax.upgrade.maps.fitting:fit"
EXAMPLE = """
Learn a map from the old model's vectors to the new model's space, on a sample of items embedded by
both models. A fifth of the pairs is held out to judge every candidate.

  fct-jax fit sample_old.npy sample_new.npy --out map
  fct-jax fit qdrant://host:6333/items sample_new.parquet --out map   # pairs are found by id

Without any item embedded by both models, a map may be found from two samples of the same kind of
content. It cannot be checked without 50 to 100 pairs; ids that both samples share are used for it.

  fct-jax fit some_old.npy others_new.npy --method unpaired --out map
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    what = "EmbeddingSet, .npy, Parquet, Faiss or another form of vectors, or a store"
    parser.add_argument("old", help=f"the sample embedded by the old model: {what}")
    parser.add_argument("new", help="the same items embedded by the new model")
    add_images(parser)
    add_columns(parser)
    parser.add_argument("--out", required=True, help="directory to write the map to")
    parser.add_argument("--method", help="method of the map, or auto: the best of the candidates")
    parser.add_argument("--candidates", type=names, help="methods that auto tries, separated by "
                        "commas")  # fmt: skip
    parser.add_argument("--direction", choices=("forward", "backward"), help="backward fits a "
                        "bridge, from new vectors to the old space")  # fmt: skip
    parser.add_argument("--labels", help=".npy with one integer per new vector")
    parser.add_argument("--classifier", help="classifier of the new model, for FastFill: a run or "
                        "a .npy")  # fmt: skip
    parser.add_argument("--held-out", type=float, help="share of the pairs held out for judging")
    parser.add_argument("--metric", choices=("l2", "cosine"), help="metric of the search")
    parser.add_argument("--inner-dim", type=int, help="width of fct and fastfill")
    parser.add_argument("--epochs", type=int, help="epochs of fct and fastfill; 0: chosen by the "
                        "sample's size")  # fmt: skip
    parser.add_argument("--batch-size", type=int, help="batch size of fct and fastfill; 0: chosen "
                        "by the sample's size")  # fmt: skip
    parser.add_argument("--sample", type=int, help="number of items taken from a store")
    parser.add_argument("--seed", type=int, help="seed of the split and of every fit")


def run(arguments):
    """Fit, show the candidates, and return (result, exit code)."""
    from fct_jax.upgrade import fit

    given = embedded(vars(arguments), ("old", "new"))
    found = fit(**read_columns(given, ("old", "new")))
    if found.description["quality"]:
        candidates(found).show()
    left_out = found.description["zero_pairs_left_out"]
    if left_out:
        print(f"{left_out} pairs with a zero vector were left out")
    for name, reason in found.description["left_out"].items():
        print(f"{name} was left out: {reason}")
    if said := found.description.get("without_pairs"):
        print(f"Fitted without pairs: {said}.{_checked(found)}")
    print(f"{arguments.out}: {found.method} map {found.dim_in} → {found.dim_out}")
    print(f"Next: fct-jax assess {arguments.out} TEST_OLD TEST_NEW --out report")
    return {"out": arguments.out, **found.description}, DONE


def _checked(found) -> str:
    count = found.description["pairs_held_out"]
    return f" The {count:,} ids that both samples share were kept to check it." if count else ""


def candidates(found):
    """Return a table of every candidate's quality on the held-out pairs."""
    from fct_jax.runtime.tables import Table

    scores = found.description["quality"]
    names = list(next(iter(scores.values())))
    rows = [
        [method, *(f"{quality[n]:.1f}" if n == "seconds" else f"{quality[n]:.3f}" for n in names)]
        for method, quality in scores.items()
    ]
    title = f"{found.description['pairs_held_out']:,} held-out pairs"
    return Table(title, ["method", *names], rows, emphasised=[list(scores).index(found.method)])
