"""``fct-jax fit``."""

from fct_jax.cli import DONE
from fct_jax.cli.images import add_images, embedded
from fct_jax.cli.parser import names

FUNCTION = "fct_jax.upgrade.maps.fitting:fit"
EXAMPLE = """
Learn a map from the old model's vectors to the new model's space, on a sample of items that both
have embedded. A fifth of the pairs is held out to judge every candidate.

  fct-jax fit sample_old.npy sample_new.npy --out map
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    what = "EmbeddingSet, .npy, Parquet, Faiss or another form of vectors"
    parser.add_argument("old", help=f"the sample embedded by the old model: {what}")
    parser.add_argument("new", help="the same items embedded by the new model")
    add_images(parser)
    parser.add_argument("--out", required=True, help="directory of the map to make")
    parser.add_argument("--method", help="a map, or auto: the best of the candidates")
    parser.add_argument("--candidates", type=names, help="maps that auto tries, with commas")
    parser.add_argument("--direction", choices=("forward", "backward"), help="backward fits a "
                        "bridge, from new vectors to the old space")  # fmt: skip
    parser.add_argument("--labels", help=".npy of one integer for each new vector")
    parser.add_argument("--classifier", help="of the new model, for FastFill: a run or a .npy")
    parser.add_argument("--held-out", type=float, help="share of the pairs that judges")
    parser.add_argument("--metric", choices=("l2", "cosine"), help="by which vectors are searched")
    parser.add_argument("--inner-dim", type=int, help="width of fct and fastfill")
    parser.add_argument("--epochs", type=int, help="of fct and fastfill; 0: as many as pay")
    parser.add_argument("--batch-size", type=int, help="of fct and fastfill; 0: by the sample")
    parser.add_argument("--seed", type=int, help="of the split and of every fit")


def run(arguments):
    """Fit, show the candidates, and return (result, exit code)."""
    from fct_jax.upgrade import fit

    found = fit(**embedded(vars(arguments), ("old", "new")))
    candidates(found).show()
    left_out = found.description["zero_pairs_left_out"]
    if left_out:
        print(f"{left_out} pairs with a zero vector were left out")
    for name, reason in found.description["left_out"].items():
        print(f"{name} was left out: {reason}")
    print(f"{arguments.out}: {found.method} map {found.dim_in} → {found.dim_out}")
    print(f"Next: fct-jax assess {arguments.out} TEST_OLD TEST_NEW --out report")
    return {"out": arguments.out, **found.description}, DONE


def candidates(found):
    """Return a table of what every candidate reached on the pairs that were held out."""
    from fct_jax.runtime.tables import Table

    scores = found.description["held_out"]
    names = list(next(iter(scores.values())))
    rows = [
        [method, *(f"{quality[n]:.1f}" if n == "seconds" else f"{quality[n]:.3f}" for n in names)]
        for method, quality in scores.items()
    ]
    title = f"{found.description['pairs_held_out']:,} pairs that were held out"
    return Table(title, ["method", *names], rows, emphasised=[list(scores).index(found.method)])
