"""``fct-jax compare``."""

from fct_jax.cli import DONE
from fct_jax.cli.columns import add_columns, read_columns
from fct_jax.cli.parser import names, shares
from fct_jax.errors import UserError

FUNCTION = "fct_jax.compare.command:compare"
EXAMPLE = """
Judge models side by side in one table: retrieval in the model's own gallery (self) and in
the old one (cross), P_up, P_comp and P_1, negative flips, update gain, and curves while the gallery
is re-embedded. Models may be backward-compatible models, transformations (FCT, FastFill), maps or
vectors.

If models are given, they are judged and nothing is trained:

  fct-jax compare --old runs/old --new runs/new --models bct=runs/bct,fct=runs/fct --data digits
  fct-jax compare --old old.npy --new new.npy --models map=MAP --labels labels.npy --out report

With a config that has a benchmark(), missing models are trained first:

  fct-jax compare digits_compatible --workdir runs/digits_compatible --seeds 3

Orders of re-embedding are compared on your own pair of models, with intervals:

  fct-jax compare orders map test_old.npy test_new.npy --labels labels.npy --out report
"""

_HELP = "see fct-jax compare --help"
ORDERS = "orders"
_JUDGE = ("old", "new", "models", "data", "labels", "shares", "seed", "out")
_BENCHMARK = ("config", "workdir", "seeds", "scenarios", "methods")
_ORDERS = ("query_old", "query_new", "query_labels", "judged", "traffic", "orders", "metric",
           "id_column", "vector_column")  # fmt: skip
# name of a mode: the options that it takes
_MODES = {
    "given models": _JUDGE,
    "a benchmark, after CONFIG": _BENCHMARK,
    f"`{ORDERS} MAP OLD NEW`": (*_ORDERS, "labels", "shares", "seed", "out"),
}


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("what", nargs="*", metavar="CONFIG",
                        help="config file of a benchmark, or the name of a packaged one; or the "
                        "words orders MAP OLD NEW")  # fmt: skip
    judge = parser.add_argument_group("judging given models")
    judge.add_argument("--old", help="the old model: a run, module:function, or vectors")
    judge.add_argument("--new", help="the new model trained alone: a run, module:function, or "
                       "vectors")  # fmt: skip
    judge.add_argument("--models", type=named, metavar="NAME=RUN,…",
                       help="runs, maps, functions or vectors; \"identity\" is the new model "
                       "with the old gallery")  # fmt: skip
    judge.add_argument("--data", help="test sets, NAME or NAME=FOLDER, separated by commas")
    judge.add_argument("--labels", help=".npy with one integer per vector")
    judge.add_argument("--shares", type=shares, help="re-embedded shares of the gallery to "
                       "measure, separated by commas")  # fmt: skip
    judge.add_argument("--seed", type=int, help="seed of the order of re-embedding")
    judge.add_argument("--out", help="directory to write the report to")
    benchmark = parser.add_argument_group("a benchmark")
    benchmark.add_argument("--config", help="the same as CONFIG")
    benchmark.add_argument("--workdir", help="directory of runs and report (default: runs/CONFIG)")
    benchmark.add_argument("--seeds", type=int, help="number of trainings to average (default: 1)")
    benchmark.add_argument("--scenarios", type=names, help="some of the config's scenarios "
                           "(default: all)")  # fmt: skip
    benchmark.add_argument("--methods", type=names, help="methods of compatible training (default: "
                           "bct,lce,hot_refresh,unibct,advbct)")  # fmt: skip
    orders = parser.add_argument_group("orders of re-embedding (also --labels, --shares, …)")
    orders.add_argument("--orders", type=names, help="orders to compare (default: all whose needs "
                        "are given)")  # fmt: skip
    orders.add_argument("--query-old", help="queries embedded by the old model")
    orders.add_argument("--query-new", help="the same queries embedded by the new model")
    orders.add_argument("--query-labels", help=".npy with one integer per query")
    orders.add_argument("--judged", help="judged pairs, in the forms that assess takes")
    orders.add_argument("--traffic", help="how often each item is asked for: a .npy file of one "
                        "number per item, or a log of ids, or ids with weights")  # fmt: skip
    add_columns(orders)
    orders.add_argument("--metric", choices=("l2", "cosine"), help="metric of the new space")


def named(text: str) -> dict[str, str]:
    """Parse ``bct=runs/bct,fct=runs/fct``."""
    from fct_jax.storage.named import names_in  # late: NumPy is not needed for help

    return names_in(text, "--models")


def run(arguments):
    """Compare, print the tables, and return (result, exit code)."""
    given = vars(arguments)
    what = given.pop("what", [])
    if what and what[0] != ORDERS:
        given.setdefault("config", what[0])
    modes = list(_MODES)
    mode = modes[2] if what[:1] == [ORDERS] else modes["config" in given]
    if what and (len(what) != 4 if mode == modes[2] else len(what) > 1):
        raise UserError(f"compare takes CONFIG, or orders MAP OLD NEW, not {' '.join(what)!r}")
    for name in given:
        if name not in _MODES[mode]:
            other = next(other for other in modes if name in _MODES[other])
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} belongs to {other}, not to {mode} ({_HELP})")
    if mode == modes[2]:
        return _orders(what[1:], given)
    return _benchmark(given) if "config" in given else _judge(given)


def _orders(what, given):
    from fct_jax.compare.orders import compare_orders

    mapping, old, new = what
    given = read_columns(
        {**given, "old": old, "new": new}, ("old", "new", "query_old", "query_new")
    )
    made = compare_orders(mapping, **given)
    made.report().show()
    _tell(given)
    return made.to_json(), DONE


def _benchmark(given):
    from fct_jax.compare.benchmark import benchmark

    made = benchmark(given.pop("config"), given.pop("workdir", None), **given)
    return {comparison.title: comparison.to_json() for comparison in made}, DONE


def _judge(given):
    if "old" not in given:
        raise UserError(f"compare needs --old, or CONFIG of a benchmark ({_HELP})")
    from fct_jax.compare.command import compare
    from fct_jax.compare.report import described

    made = compare(given.pop("old"), given.pop("models", {}), **given)
    described([made]).show()
    _tell(given)
    return made.to_json(), DONE


def _tell(given) -> None:
    if "out" in given:
        print(f"{given['out']}: report.html, report.md, report.json, curves.png")
