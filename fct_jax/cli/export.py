"""``fct-jax export``."""

from fct_jax.cli import DONE
from fct_jax.cli.columns import add_columns, read_columns
from fct_jax.errors import UserError

FUNCTION = "fct_jax.upgrade.ways.exporting:export"
EXAMPLE = """
Write a way of serving as one .npz file, by which a service searches with NumPy alone:
`PlainSearch` of fct_jax.upgrade.ways.plain reads it. A way that mixes two spaces takes the
calibration of a report; whatever else is not given is learnt from OLD and NEW, items embedded by
both models.

  fct-jax export fused --report report --out fused.npz
  fct-jax export cascade --report report --settings depth=50,score=sum --out cascade.npz
  fct-jax export common vectors_old.npy vectors_new.npy --out common.npz
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("way", metavar="WAY", help="way of serving, as assess names it")
    parser.add_argument("pairs", nargs="*", metavar="VECTORS", help="OLD NEW: items embedded by "
                        "both models, to learn from what is not given")  # fmt: skip
    add_columns(parser)
    parser.add_argument("--out", required=True, help="the .npz file to write")
    parser.add_argument("--report", help="directory that assess wrote, with its calibration")
    parser.add_argument("--map", help="map by the method common, whose common space is used")
    parser.add_argument("--bridge", help="map that was fitted with --direction backward")
    parser.add_argument("--metric", choices=("l2", "cosine"), help="metric of the search")
    parser.add_argument("--settings", type=settings, metavar="NAME=VALUE,…",
                        help="settings of the way, such as depth=50 or weight=0.3")  # fmt: skip
    parser.add_argument("--sample", type=int, help="number of items taken from a store")
    parser.add_argument("--seed", type=int, help="seed of all random choices")


def settings(text: str) -> dict[str, object]:
    """Parse ``depth=50,score=sum``: whole numbers, numbers and names."""
    from fct_jax.storage.named import names_in  # late: NumPy is not needed for help

    return {name: _value(value) for name, value in names_in(text, "--settings").items()}


def _value(text: str):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def run(arguments):
    """Export, and return (result, exit code)."""
    from fct_jax.upgrade.ways.exporting import export

    given = vars(arguments)
    way, pairs = given.pop("way"), given.pop("pairs", [])
    if len(pairs) not in (0, 2):
        raise UserError(f"export takes WAY, or WAY OLD NEW, not WAY and {len(pairs)} names")
    given |= dict(zip(("old", "new"), pairs, strict=False))
    path = export(way, **read_columns(given, ("old", "new")))
    print(f"{path}: search it with fct_jax.upgrade.ways.plain.PlainSearch")
    return {"out": str(path), "way": way}, DONE
