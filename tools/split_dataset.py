"""Split a training list for an old and a new model, by class or by data.

  python tools/split_dataset.py gldv2_train.txt --by class --ratio 0.3 --seed 666 --out splits/

writes splits/gldv2_train_old_30percent_class.txt and splits/gldv2_train_new_100percent_class.txt.
With --by data, the extended-data setting trains its new model on the whole LIST; the
"new_70percent" file holds the images that the old model has not seen.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax.data.lists import read_list
from fct_jax.data.splits import split_list
from fct_jax.errors import UserError
from tools.script import Parser, status

# format: fields after the label, whether classes keep the order of their first images
FORMATS = {"plain": (0, False), "market1501": (2, True)}


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("list", metavar="LIST", type=Path, help="text file of 'path label' lines")
    parser.add_argument(
        "--by",
        choices=("class", "data"),
        required=True,
        help="class: the old model knows some classes, renumbered from 0; "
        "data: it knows some images of every class",
    )
    parser.add_argument(
        "--ratio", type=float, default=0.3, help="share of the old model (default 0.3)"
    )
    parser.add_argument(
        "--seed", type=int, default=666, help="seed of the draw (default 666, the published splits)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--name", help="beginning of the written files' names (default: LIST without its ending)"
    )
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="plain",
        help="plain: 'path label'; market1501: 'path identity camera view' (default plain)",
    )
    return parser


def run(arguments: list[str]) -> None:
    flags = parser().parse_args(arguments)
    if not 0 <= flags.seed < 2**31:
        raise UserError(f"--seed must be 0 or more and below 2**31, not {flags.seed}")
    trailing, by_appearance = FORMATS[flags.format]
    lines = read_list(flags.list, trailing)
    parts = split_list(lines, flags.by, flags.ratio, flags.seed, by_appearance=by_appearance)
    name = flags.list.stem if flags.name is None else flags.name
    files = {flags.out / f"{name}_{part}.txt": text for part, text in parts.items()}
    present = [str(file) for file in files if file.exists()]
    if present:
        raise UserError(f"nothing is overwritten: {', '.join(present)} exists already")
    try:
        flags.out.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            # With "x", not even a file that appeared since the check above is overwritten.
            with file.open("x", encoding="utf-8") as out:
                out.writelines(f"{line}\n" for line in text)
            print(f"{file}: {len(text)} images")
    except OSError as error:
        raise UserError(f"cannot write to {flags.out}: {error}") from error


if __name__ == "__main__":
    sys.exit(status(run))
