"""Measures every way of upgrading on every given pair of models.

    python tools/benchmark_upgrade.py --quick                     # the digits, about two minutes
    python tools/benchmark_upgrade.py --pair emoji=FOLDER --pair text=FOLDER --out evidence
    python tools/benchmark_upgrade.py --images pets=runs/old,runs/new,PICTURES

The grid is pairs (each also reversed: an upgrade to the old model, which should be refused) × ways
of serving × maps × orders of re-embedding × sizes of the sample × seeds. The queries are halved:
one half decides, the other tests the decision. A FOLDER holds EmbeddingSets or .npy files: old and
new; labels, or query_old, query_new and judged (.npy, TREC qrels, BEIR); and sample_old and
sample_new to learn from, without which a part of the gallery is set aside for the sample (for other
file names see tools/upgrading/pairs.py).

The tool writes report.md, .json, .html and curves.png to OUT, and also cells.jsonl, from which the
same command resumes after an interruption. Negative results stay in.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax.cli.parser import names, shares
from fct_jax.errors import UserError
from fct_jax.evaluate.orders import find_order
from fct_jax.runtime import progress
from fct_jax.upgrade.maps.methods import find_method
from fct_jax.upgrade.ways import WAYS, find_way
from tools.script import Parser, status
from tools.upgrading import pairs
from tools.upgrading.cells import measure
from tools.upgrading.summary import report_of

FULL = {
    "maps": ["procrustes", "ridge", "local"],
    "sizes": [100, 300, 1000, 3000, 10_000],
    "seeds": 3,
    "ways": list(WAYS),
    "orders": ["random", "uncertainty", "certainty", "confidence", "class_mean"],
    "shares": [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0],
    "queries": 500,
    "items": 4000,
    "resamples": 1000,
    "epochs": 0,
}
QUICK = FULL | {
    "maps": ["ridge"],
    "sizes": [300],
    "seeds": 1,
    "shares": [0.0, 0.25, 0.5, 1.0],
    "queries": 100,
    "items": 1000,
    "resamples": 200,
}


def main(arguments=None) -> int:
    """Run the command; return its exit status."""
    return status(_command, arguments)


def _command(words) -> None:
    out = run(_parser().parse_args(words))
    print(f"{out}: report.html, report.md, report.json, curves.png, cells.jsonl")


def run(given) -> Path:
    """Measure what is missing in OUT/cells.jsonl, and write the report."""
    settings = {
        name: value if getattr(given, name) is None else getattr(given, name)
        for name, value in (QUICK if given.quick else FULL).items()
    }
    _check(settings)
    found = _pairs(given)
    told = {**settings, "pairs": {pair.name: len(pair.new) for pair in found}}
    done = _open(given.out, told)
    progress.silence()  # no bars for assessments; each cell has a line instead
    grid = [
        (pair, seed, method, size)
        for pair in found
        for seed in range(settings["seeds"])
        for method in settings["maps"]
        for size in settings["sizes"]
    ]
    missing = [cell for cell in grid if _key(*cell) not in done]
    print(f"{len(grid)} cells, {len(grid) - len(missing)} of them done before", file=sys.stderr)
    too_large: dict[str, set[int]] = {}
    made, start, measured = (None, None), time.monotonic(), 0
    for number, cell in enumerate(missing, start=1):
        pair, seed, method, size = cell
        if made[0] != (pair.name, seed):
            cut = pairs.cut(
                pair, seed, settings["queries"], settings["items"], max(settings["sizes"])
            )
            made = (pair.name, seed), cut
        if size > len(made[1].sample[1]):
            too_large.setdefault(pair.name, set()).add(size)
            continue
        record = dict(zip(("pair", "seed", "map", "size"), _key(*cell), strict=True))
        record |= measure(made[1], method, size, seed, settings)
        with (given.out / "cells.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        done[_key(*cell)] = record
        measured += 1
        left = (time.monotonic() - start) / number * (len(missing) - number)
        print(
            f"[{number}/{len(missing)}] {pair.name}, {method}, {size:,} pairs, seed {seed}: "
            f"{record.get('advice') or 'refused'}; about {left / 60:.0f} min left",
            file=sys.stderr,
        )
    notes = [
        f"{name} has no sample of {', '.join(f'{size:,}' for size in sorted(sizes))} pairs."
        for name, sizes in too_large.items()
    ]
    wanted = [done[_key(*cell)] for cell in grid if _key(*cell) in done]
    report = report_of(wanted, told, notes)
    report.write(given.out)
    report.show()
    return given.out


def _parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="one map, one size, one seed")
    parser.add_argument("--pair", action="append", default=[], metavar="NAME=FOLDER",
                        help="vectors by two models; may be repeated")  # fmt: skip
    parser.add_argument("--images", action="append", default=[], metavar="NAME=OLD,NEW,IMAGES",
                        help="two runs and a folder of images")  # fmt: skip
    parser.add_argument("--no-digits", action="store_true", help="leave out the bundled digits")
    parser.add_argument("--no-reversed", action="store_true", help="leave out reversed pairs")
    parser.add_argument("--out", type=Path, default=Path("benchmark_upgrade"), help="directory")
    parser.add_argument("--maps", type=names, help="methods of fct-jax fit, with commas")
    parser.add_argument("--sizes", type=_whole, help="pairs of the sample, with commas")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    parser.add_argument("--ways", type=names, help="ways of serving, with commas")
    parser.add_argument("--orders", type=names, help="orders of re-embedding, with commas")
    parser.add_argument("--shares", type=shares, help="re-embedded shares of the gallery")
    parser.add_argument("--queries", type=int, help="at most so many in each half")
    parser.add_argument("--items", type=int, help="largest number of items in the gallery")
    parser.add_argument("--resamples", type=int, help="number of resamples of the bootstrap")
    parser.add_argument("--epochs", type=int, help="epochs of networks; 0: as fct-jax fit")
    return parser


def _whole(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"whole numbers with commas, not {text!r}") from None


def _check(settings: dict) -> None:
    """Raise UserError for unknown names and impossible numbers, before anything is measured."""
    for name in settings["ways"]:
        find_way(name)
    for name in settings["orders"]:
        find_order(name)
    for name in settings["maps"]:
        find_method(name)
    for name in ("sizes", "queries", "items"):
        least = min(settings[name]) if name == "sizes" else settings[name]
        if least < 20:
            raise UserError(f"{name} must be 20 or more, not {least}")
    if settings["seeds"] < 1:
        raise UserError(f"seeds must be 1 or more, not {settings['seeds']}")


def _pairs(given) -> list[pairs.ModelPair]:
    found = [] if given.no_digits else [pairs.digits()]
    for text in given.pair:
        name, _, folder = text.partition("=")
        if not folder:
            raise UserError(f"--pair takes NAME=FOLDER, not {text!r}")
        found.append(pairs.from_folder(name, folder))
    for text in given.images:
        name, _, rest = text.partition("=")
        parts = rest.split(",")
        if len(parts) != 3:
            raise UserError(f"--images takes NAME=OLD,NEW,IMAGES, not {text!r}")
        found.append(pairs.from_images(name, *parts))
    if not found:
        raise UserError("there is no pair: give --pair NAME=FOLDER or --images")
    twice = {pair.name for pair in found if [p.name for p in found].count(pair.name) > 1}
    if twice:
        raise UserError(f"two pairs are called {twice.pop()!r}")
    if given.no_reversed:
        return found
    return [side for pair in found for side in (pair, pair.reversed())]


def _key(pair, seed: int, method: str, size: int) -> tuple:
    return pair.name, seed, method, size


def _open(out: Path, told: dict) -> dict[tuple, dict]:
    """Return the existing records. Raises UserError if they were made with other settings."""
    path = out / "cells.jsonl"
    if not path.exists():
        if out.exists() and any(out.iterdir()):
            raise UserError(f"{out} exists already and holds no benchmark; nothing was overwritten")
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"settings": told}) + "\n")
        return {}
    # A line that a kill cut off is dropped.
    whole = path.read_bytes()
    if not whole.endswith(b"\n"):
        path.write_bytes(whole[: whole.rfind(b"\n") + 1])
    first, *lines = path.read_text().splitlines() or ["{}"]
    if json.loads(first).get("settings") != json.loads(json.dumps(told)):
        raise UserError(
            f"{out} holds a benchmark with other settings; name another --out, or use the same "
            "settings to go on"
        )
    records = (json.loads(line) for line in lines)
    return {(r["pair"], r["seed"], r["map"], r["size"]): r for r in records}


if __name__ == "__main__":
    sys.exit(main())
