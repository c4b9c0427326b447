"""Compile the published recipes for TPU topologies, and write what they need into docs/pods.md.

  python tools/compile_table.py                    # the table again, from the results kept
  python tools/compile_table.py --compile          # compile what is missing: hours on two cores
  python tools/compile_table.py --compile --only resnet50 --topology v5e:4x4

Each result is kept in docs/pods.json as soon as it is there, so a run may be interrupted; those of
a recipe that has changed, or named with --again, are compiled anew. Needs the extra tpu.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax.errors import UserError, unknown
from fct_jax.runtime.tables import Table
from fct_jax.storage.files import write_synced
from tools.script import Parser, read_json, status

DOCS = Path(__file__).parent.parent / "docs"
RESULTS, PAGE = DOCS / "pods.json", DOCS / "pods.md"
BEGIN, END = "<!-- table: python tools/compile_table.py -->\n", "<!-- end of the table -->\n"

FIRST = "v5e:4x4"
OTHERS = ("v4:2x2x4", "v5p:2x2x4", "v6e:4x4", "v5e:16x16")
HALF = "compute_dtype=bfloat16"


class Recipe(NamedTuple):
    """A training to compile.

    Attributes:
      title: its name in the table.
      config: a packaged config.
      changes: ``key=value`` words.
      topologies: where it is compiled for.
    """

    title: str
    config: str
    changes: tuple[str, ...] = ()
    topologies: tuple[str, ...] = (FIRST,)


def _imagenet(title: str, model: str, *topologies: str) -> Recipe:
    words = (f"model.name={model}", HALF)
    return Recipe(title, "imagenet_backbone_new", words, topologies=(FIRST, *topologies))


RECIPES = {
    "fct-50k": Recipe("FCT, 50,000 embeddings", "cifar100_fct", topologies=(FIRST, *OTHERS)),
    "fastfill-50k": Recipe("FastFill, 50,000 embeddings", "cifar100_fastfill"),
    "fct-1.28m": Recipe("FCT, 1.28 M embeddings × 8 views", "imagenet_fct"),
    "fastfill-1.28m": Recipe("FastFill, 1.28 M embeddings × 8 views", "imagenet_fastfill"),
    "resnet18": _imagenet("ResNet-18, ImageNet, batch 1,024", "resnet18"),
    "resnet50": _imagenet("ResNet-50, ImageNet, batch 1,024", "resnet50", *OTHERS),
    "advbct": Recipe(
        "AdvBCT, ResNet-18, 81,313 landmarks, batch 256",
        "gldv2_compatible",
        ("method=advbct", HALF),
        topologies=(FIRST, *OTHERS),
    ),
    "simclr": Recipe("SimCLR, batch 4,096", "imagenet_simclr", ("batch_size=4096", HALF)),
    "arcface": Recipe(
        "ArcFace, ResNet-50, 93,431 persons over 4 chips, batch 512",
        "ms1m_compatible",
        ("method=none", "mesh.model=4", HALF),
    ),
    "wide": _imagenet("Wide-ResNet-50-2, ImageNet, batch 1,024", "wide_resnet50_2"),
    "resnet101": _imagenet("ResNet-101, ImageNet, batch 1,024", "resnet101"),
}


def main(words) -> None:
    """Compile what the command line asks for, and write the table."""
    parser = Parser(__doc__)
    parser.add_argument("--compile", action="store_true", help="compile what is missing")
    parser.add_argument("--only", default=",".join(RECIPES), help="recipes, comma-separated")
    parser.add_argument("--topology", help="compile for this one only")
    parser.add_argument("--again", action="store_true", help="compile what is there, too")
    arguments = parser.parse_args(words)
    names = arguments.only.split(",")
    for name in names:
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES)
    kept = read_json(RESULTS) if RESULTS.exists() else {}
    if arguments.compile:
        for name in names:
            for topology in RECIPES[name].topologies:
                wanted = arguments.topology in (None, topology)
                if wanted and (arguments.again or not is_current(kept, name, topology)):
                    kept.setdefault(name, {})[topology] = compiled(RECIPES[name], topology)
                    save(kept)
    write_synced(PAGE, with_table(PAGE.read_text(), table(kept).markdown()).encode())


def is_current(kept: dict, name: str, topology: str) -> bool:
    """Return whether a result is there, of the recipe as it is now."""
    found = kept.get(name, {}).get(topology)
    return found is not None and found["recipe"] == command(RECIPES[name], topology)


def command(recipe: Recipe, topology: str) -> str:
    """Return the command that compiles a recipe."""
    return " ".join(["fct-jax compile", recipe.config, "--topology", topology, *recipe.changes])


def save(kept: dict) -> None:
    """Keep the results: one of them may have taken an hour."""
    write_synced(RESULTS, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())


def compiled(recipe: Recipe, topology: str) -> dict:
    """Compile the training step of a recipe; return its figures, and what would fit if it does not.

    The inference pass is not compiled: it fits wherever the training step does.
    """
    from fct_jax.compiling.chips import cpu_only

    cpu_only()
    from fct_jax.cli.compile import change
    from fct_jax.compiling import compile_config
    from fct_jax.compiling.settings import nearest_that_fits
    from fct_jax.compiling.stand_ins import USUAL
    from fct_jax.runtime.config_files import find_config, read_config

    config = read_config(find_config(recipe.config))
    change(config, recipe.changes)
    print(command(recipe, topology), flush=True)
    step = next(compile_config(config, topology, say=print))
    nearest = None
    if not step.fits:
        nearest = nearest_that_fits(config, topology, USUAL, print)
    return {
        "recipe": command(recipe, topology),
        "step": step.to_json(),
        "nearest": nearest and {"changes": nearest[0], "step": nearest[1].to_json()},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }


def table(kept: dict) -> Table:
    """Return the table of all recipes; those without a result have the command instead."""
    columns = ["recipe", "chips", "memory", "step", "bound by", "of the peak", "rate"]
    columns += ["between chips"]
    rows = []
    for name, recipe in RECIPES.items():
        for topology in recipe.topologies:
            if not is_current(kept, name, topology):
                missing = f"not compiled yet: `--compile --only {name} --topology {topology}`"
                rows.append([recipe.title, topology, *[""] * (len(columns) - 3), missing])
                continue
            result = kept[name][topology]
            rows.append([recipe.title, topology, *_cells(result["step"], topology)])
            if result["nearest"]:
                words = [f"{key}={value}" for key, value in result["nearest"]["changes"].items()]
                title = f"the same with {' '.join(words)}"
                rows.append([title, topology, *_cells(result["nearest"]["step"], topology)])
    return Table("Training steps, figures of one chip", columns, rows, text=(0, 1, 4, 7))


def _cells(step: dict, topology: str) -> list[str]:
    from fct_jax.compiling.chips import find_chip

    memory = f"{step['memory'] / 2**30:.2f} of {find_chip(topology).memory / 2**30:.0f} GiB"
    if not step["fits"]:
        return [f"**{memory}**", "does not fit", "", "", "", ""]
    milliseconds = f"{step['seconds'] * 1e3:.3g} ms"
    moved = [f"{count} {kind}" for kind, (count, _) in sorted(step["collectives"].items())]
    total = sum(size for _, size in step["collectives"].values())
    return [
        memory,
        milliseconds,
        step["bound"],
        f"{100 * step['share_of_peak']:.0f} %",
        f"{step['items_per_second']:,.0f} {step['unit']}/s",
        f"{', '.join(moved)}; {total / 1e6:.3g} MB" if moved else "nothing",
    ]


def with_table(page: str, text: str) -> str:
    """Return a page with the text between its two marks. Raises UserError without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{PAGE} has no lines {BEGIN.strip()!r} and {END.strip()!r}")
    return f"{before}{begin}\n{text.rstrip()}\n\n{end}{after}"


if __name__ == "__main__":
    sys.exit(status(main))
