"""``fct-jax doctor``."""

from fct_jax.cli import DONE, LOOK

FUNCTION = "fct_jax.upgrade.checks.doctor:examine"
EXAMPLE = """
Check a file of vectors before you trust it: rows, dimension, lengths, NaN and zero vectors,
repeated ids, copies, mixed vectors of two models, and what it probably is.

  fct-jax doctor vectors.npy
  fct-jax doctor qdrant://host:6333/items --sample 50000

Exit code: 0 if nothing was found, 2 with findings.
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("where", metavar="VECTORS", help="a file or folder of vectors, or the URI "
                        "of a store")  # fmt: skip
    parser.add_argument("--sample", type=int, help="number of rows drawn from a store")
    parser.add_argument("--id-column", help="name of the id column; found if not given")
    parser.add_argument("--vector-column", help="name of the vector column; found if not given")


def run(arguments):
    """Examine the vectors, print the findings, and return (result, exit code)."""
    from fct_jax.upgrade.checks.doctor import examine

    found = examine(**vars(arguments))
    shortest, mean, longest = found.lengths
    if found.looked_at < found.rows:
        print(f"a sample of {found.looked_at:,} rows was looked at")
    print(f"{found.name}: {found.rows:,} vectors of {found.dim} dimensions, {found.dtype}")
    print(f"lengths {shortest:.4g} to {longest:.4g}, mean {mean:.4g}")
    print(f"probably {found.likely}")
    for finding in found.findings:
        print(f"! {finding.kind}: {finding.text}")
    if not found.findings:
        print("no problems found")
    return found.to_json(), LOOK if found.findings else DONE
