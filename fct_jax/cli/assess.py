"""``fct-jax assess``."""

from fct_jax.cli import DONE, LOOK
from fct_jax.cli.columns import add_columns, read_columns
from fct_jax.cli.images import add_images, embedded
from fct_jax.cli.parser import names, shares
from fct_jax.errors import UserError

FUNCTION = "fct_jax.upgrade.assessment.assessing:assess"
EXAMPLE = """
Measure on held-out queries what each way of upgrading would gain and cost: keep, translate,
query both models, re-embed a share or all. With two arguments a map is fitted on one part of the
items and judged on the other; with three, the first is a map that `fct-jax fit` made.

  fct-jax assess vectors_old.npy vectors_new.npy
  fct-jax assess map test_old test_new --query-old q_old.npy --query-new q_new.npy \\
      --judged judged.npy --out report

Exit code: 0 for the verdict "upgrade", 2 for "keep" and for "cannot tell".
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("what", nargs="+", metavar="VECTORS",
                        help="[MAP] OLD NEW: optionally a map, then the same "
                        "items embedded by both models")  # fmt: skip
    add_images(parser)
    add_columns(parser)
    parser.add_argument("--out", help="directory to write the report to")
    parser.add_argument("--runs-out", help="directory to write TREC runs to: keep, the new model, "
                        "and the advised way")  # fmt: skip
    parser.add_argument("--query-old", help="queries embedded by the old model")
    parser.add_argument("--query-new", help="the same queries embedded by the new model")
    parser.add_argument("--labels", help=".npy with one integer per item")
    parser.add_argument("--query-labels", help=".npy with one integer per query")
    parser.add_argument("--judged", help="judged pairs: TREC qrels, a BEIR folder, or .npy "
                        "of (Q,) ids or rows of query id, item id and gain")  # fmt: skip
    parser.add_argument("--groups", help=".npy with one integer per query: groups that the report "
                        "compares")  # fmt: skip
    parser.add_argument("--target", help="metric that decides")
    parser.add_argument("--shares", type=shares, help="re-embedded shares of the gallery to "
                        "measure, separated by commas")  # fmt: skip
    parser.add_argument("--ways", type=names, help="ways of serving, separated by commas")
    parser.add_argument("--orders", type=names, help="orders of re-embedding to try, separated by "
                        "commas")  # fmt: skip
    parser.add_argument("--method", help="map to fit if none is named")
    parser.add_argument("--depth", type=int, help="number of results judged per query")
    parser.add_argument("--judged-calibration", type=float, help="share of the judged queries that "
                        "dual and fused learn from; these are not assessed")  # fmt: skip
    parser.add_argument("--threshold", type=float, help="the service's cut-off on the cosine of "
                        "old vectors, to be converted to the new ones")  # fmt: skip
    parser.add_argument("--embeddings-a-query", type=int, help="largest number of new vectors that "
                        "a cascade makes while a query waits")  # fmt: skip
    parser.add_argument("--popularity", type=float, help="exponent of the Zipf law by which "
                        "queries repeat")  # fmt: skip
    parser.add_argument("--traffic", help="queries as they are asked, which a cascade replays, or "
                        "items: .npy or text of ids in order, or of ids with weights")  # fmt: skip
    parser.add_argument("--max-queries", type=int, help="sample at most this number of queries")
    parser.add_argument("--gallery-size", type=int, help="number of items in the whole gallery")
    parser.add_argument("--items-per-second", type=float, help="speed of the new model")
    parser.add_argument("--cost-per-1000", type=float, help="price of 1,000 new embeddings")
    parser.add_argument("--currency", help="currency of the price")
    parser.add_argument("--resamples", type=int, help="number of bootstrap resamples")
    parser.add_argument("--metric", choices=("l2", "cosine"), help="metric of the new space")
    parser.add_argument("--sample", type=int, help="number of items taken from a store")
    parser.add_argument("--seed", type=int, help="seed of all random choices")


def run(arguments):
    """Assess, print the verdict, and return (result, exit code)."""
    from fct_jax.upgrade import assess

    given = vars(arguments)
    what = given.pop("what")
    if len(what) not in (2, 3):
        raise UserError(f"assess takes OLD NEW or MAP OLD NEW, not {len(what)} names")
    mapping, old, new = (None, *what) if len(what) == 2 else what
    given = embedded({**given, "old": old, "new": new}, ("old", "new"))
    given = read_columns(given, ("old", "new", "query_old", "query_new"))
    made = assess(mapping, **given)
    made.print()
    if "out" in given:
        print(f"{given['out']}: report.html, report.md, report.json, curves.png, calibration/")
    return made.to_json(), DONE if made.advice == "upgrade" else LOOK
