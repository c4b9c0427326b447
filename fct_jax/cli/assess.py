"""``fct-jax assess``."""

from fct_jax.cli import DONE, LOOK
from fct_jax.cli.images import add_images, embedded
from fct_jax.cli.parser import names, shares
from fct_jax.errors import UserError

FUNCTION = "fct_jax.upgrade.assessment.assessing:assess"
EXAMPLE = """
Say what each way of upgrading would gain and cost, measured on held-out queries: keep, translate,
ask both models, re-embed a share or all. With two arguments a map is fitted on one part of the
items and judged on the other; with three, the first is a map that `fct-jax fit` made.

  fct-jax assess vectors_old.npy vectors_new.npy
  fct-jax assess map test_old test_new --query-old q_old.npy --query-new q_new.npy \\
      --judged judged.npy --out report

Exit code: 0 for the verdict "upgrade", 2 for "keep" and for "cannot tell".
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("what", nargs="+", metavar="VECTORS",
                        help="[MAP] OLD NEW: a map, optionally, and the same "
                        "items embedded by both models")  # fmt: skip
    add_images(parser)
    parser.add_argument("--out", help="directory of the report to make")
    parser.add_argument("--runs-out", help="directory of TREC runs to make: keep, the new model, "
                        "and the way that is advised")  # fmt: skip
    parser.add_argument("--query-old", help="queries embedded by the old model")
    parser.add_argument("--query-new", help="the same queries embedded by the new model")
    parser.add_argument("--labels", help=".npy of one integer for each item")
    parser.add_argument("--query-labels", help=".npy of one integer for each query")
    parser.add_argument("--judged", help="judged pairs: TREC qrels, a BEIR folder, or .npy "
                        "of (Q,) ids or rows of query id, item id and gain")  # fmt: skip
    parser.add_argument("--groups", help=".npy of one integer for each query, compared in the "
                        "report")  # fmt: skip
    parser.add_argument("--target", help="metric that decides")
    parser.add_argument("--shares", type=shares, help="of the gallery re-embedded")
    parser.add_argument("--ways", type=names, help="ways of serving, with commas")
    parser.add_argument("--orders", type=names, help="orders of re-embedding to try, with commas")
    parser.add_argument("--method", help="map to fit where none is named")
    parser.add_argument("--depth", type=int, help="results of a query that are judged")
    parser.add_argument("--judged-calibration", type=float, help="share of the judged queries that "
                        "dual and fused learn from; these are not assessed")  # fmt: skip
    parser.add_argument("--threshold", type=float, help="cut-off of the service on the cosine of "
                        "old vectors: what it becomes")  # fmt: skip
    parser.add_argument("--embeddings-a-query", type=int, help="most new vectors that a cascade "
                        "makes while a query waits")  # fmt: skip
    parser.add_argument("--popularity", type=float, help="exponent of Zipf's law by which queries "
                        "come again")  # fmt: skip
    parser.add_argument("--max-queries", type=int, help="sample down to so many queries")
    parser.add_argument("--gallery-size", type=int, help="items of the whole gallery")
    parser.add_argument("--items-per-second", type=float, help="rate of the new model")
    parser.add_argument("--cost-per-1000", type=float, help="price of 1,000 new embeddings")
    parser.add_argument("--currency", help="of the price")
    parser.add_argument("--resamples", type=int, help="of the bootstrap")
    parser.add_argument("--metric", choices=("l2", "cosine"), help="of the new space")
    parser.add_argument("--seed", type=int, help="of all random choices")


def run(arguments):
    """Assess, print the verdict, and return (result, exit code)."""
    from fct_jax.upgrade import assess

    given = vars(arguments)
    what = given.pop("what")
    if len(what) not in (2, 3):
        raise UserError(f"assess takes OLD NEW or MAP OLD NEW, not {len(what)} names")
    mapping, old, new = (None, *what) if len(what) == 2 else what
    given = embedded({**given, "old": old, "new": new}, ("old", "new"))
    made = assess(mapping, **given)
    made.print()
    if "out" in given:
        print(f"{given['out']}: report.html, report.md, report.json, curves.png, calibration/")
    return made.to_json(), DONE if made.advice == "upgrade" else LOOK
