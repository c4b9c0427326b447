"""Checks whether the quickstart's table lies within the usual spread over seeds.

  python tools/quickstart_check.py runs/digits/report
  python tools/quickstart_check.py --learn runs/digits_spread/report   # writes the usual values

The usual values, ``configs/quickstart.json``, are learnt from a report of
``tools/quickstart_spread.py``. One seed says little: another processor rounds differently, rounding
differences grow while a network trains, and so the tables of two machines differ as those of two
seeds do. The usual range of a value is an interval; with a probability of 95 %, all values of one
more training lie in their ranges: mean ± t · s · √(1 + 1/n), where s is the standard deviation over
n seeds and t a quantile of Student's distribution with n - 1 degrees of freedom (Bonferroni).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax.errors import UserError

RANGES = Path(__file__).parent.parent / "configs" / "quickstart.json"
_TOGETHER = 0.95  # probability that all values of a sound table lie in their ranges


def learn(spread: Path, ranges: Path = RANGES) -> str:
    """Write the values of each seed of a ``quickstart_spread`` report; return a line about them.

    Raises UserError if there is no such report.
    """
    seeds = _read(spread / "report.json").get("seeds")
    if not seeds:
        raise UserError(f"{spread} is no report of tools/quickstart_spread.py: it has no seeds")
    tables = [table_of(seed) for seed in seeds]
    values = {name: [table[name] for table in tables] for name in tables[0]}
    usual(values)  # raises if there are too few
    ranges.write_text(json.dumps({"seeds": len(tables), "values": values}, indent=1) + "\n")
    return f"{ranges}: {len(values)} values of {len(tables)} seeds"


def table_of(report: dict) -> dict[str, float]:
    """Return the values of a report's retrieval table, in percent, by "row, column"."""
    return {
        f"{row}, {column}": 100 * value
        for row, values in report["retrieval"].items()
        for column, value in values.items()
    }


def usual(values: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Return (lowest, highest) of each value, for one more training of the same kind."""
    from scipy.stats import t

    count = len(next(iter(values.values())))
    if count < 3:
        raise UserError(f"{count} seeds say nothing of a spread; measure at least 3")
    quantile = t.ppf(1 - (1 - _TOGETHER) / (2 * len(values)), count - 1)
    found = {}
    for name, measured in values.items():
        half = quantile * np.std(measured, ddof=1) * np.sqrt(1 + 1 / count)
        found[name] = (float(np.mean(measured) - half), float(np.mean(measured) + half))
    return found


def compare(report: Path, ranges: Path = RANGES) -> str:
    """Return one line about a report of the quickstart.

    Raises UserError if there is no report, or if no ranges were learnt.
    """
    measured = _read(ranges)["values"]
    table, known = table_of(_read(report / "report.json")), usual(measured)
    seeds = len(next(iter(measured.values())))
    outside = [
        f"{name} {table[name]:.1f} (usually {low:.1f} to {high:.1f})"
        for name, (low, high) in known.items()
        if name in table and not low <= table[name] <= high
    ]
    if missing := known.keys() - table.keys():
        outside += [f"{name} is missing" for name in sorted(missing)]
    if outside:
        return f"outside the usual spread of {seeds} seeds: {'; '.join(outside)}"
    widest = max(known, key=lambda name: known[name][1] - known[name][0])
    low, high = known[widest]
    return (
        f"All {len(known)} values are within the usual spread of {seeds} seeds (the widest: "
        f"{widest}, {max(low, 0):.1f} to {min(high, 100):.1f} %)."
    )


def _read(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"no {path}")
    return json.loads(path.read_text())


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", nargs="?", type=Path, help="folder of a report to compare")
    parser.add_argument("--learn", type=Path, metavar="SPREAD", help="report of several seeds")
    given = parser.parse_args(arguments)
    try:
        if given.learn:
            print(learn(given.learn))
        elif given.report:
            print(compare(given.report))
        else:
            parser.error("give the folder of a report, or --learn SPREAD")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
