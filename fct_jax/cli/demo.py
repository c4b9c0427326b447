"""``fct-jax demo``."""

from pathlib import Path

from fct_jax.cli import DONE

EXAMPLE = """
Upgrade a small bundled gallery: 797 handwritten digits, embedded by an old model that has seen only
the digits 0 to 4, and by a new one that knows all ten. The demo fits a map on 1,000 other digits,
judges every way of serving, and writes a report with a picture.

  fct-jax demo
"""


def add_arguments(parser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("--out", help="directory to write the report to (default: fct_jax_demo)")


def run(arguments):
    """Fit and assess on the bundled vectors; return (result, exit code)."""
    from fct_jax.demo import load
    from fct_jax.upgrade import assess, fit

    out = Path(arguments.out) if hasattr(arguments, "out") else _free_name("fct_jax_demo")
    sample, gallery = load("train"), load("validation")
    print(f"1/2 fitting a map on {len(sample.labels):,} digits that both models have embedded")
    found = fit(sample.old, sample.new, labels=sample.labels, candidates=("procrustes", "ridge"))
    print(f"2/2 judging every way of serving on {len(gallery.labels):,} other digits")
    made = assess(
        found,
        gallery.old,
        gallery.new,
        labels=gallery.labels,
        out=out,
    )
    made.print()
    print(f"The picture and the whole report: {out / 'report.html'}")
    print("Your own vectors: fct-jax assess vectors_old.npy vectors_new.npy")
    return {**made.to_json(), "out": str(out)}, DONE


def _free_name(name: str) -> Path:
    """Return the first of NAME, NAME-2, NAME-3 … that is free, so that a demo can be repeated."""
    path, number = Path(name), 1
    while path.exists():
        number += 1
        path = Path(f"{name}-{number}")
    return path
