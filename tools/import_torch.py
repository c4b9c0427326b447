"""Turn a PyTorch model into a run, which all other commands accept.

  python tools/import_torch.py FILE --out RUN --size 224
  python tools/import_torch.py FILE --out RUN --size 32 --arch resnet50 --embedding_dim 128

FILE is one of
  *.pt                 TorchScript archives of FCT and FastFill: backbones, SimCLR side models,
                       transformations, and transformed old models (these make three runs: RUN,
                       RUN/old and, where it has side information, RUN/side)
  *.pth.tar            AdvBCT's checkpoints; LCE's transformation of old embeddings, alone or
                       with its old model (these make two runs: RUN and RUN/old)
  *.pth, *.safetensors weights under torchvision's, timm's, FCT's or AdvBCT's names

The architecture is inferred from the weights; --arch, --embedding_dim, --num_classes and --width
only assert that it is the one you expect. The weights do not tell the size of the images: give the
size that the model was trained on with --size (a wrong size still agrees with PyTorch, but costs
much of the quality). The tool embeds a few random images (or vectors) with the PyTorch model and
with the run, and writes nothing if they differ by more than 1e-4 of the largest value. PyTorch is
needed for all files but .safetensors files, which are not compared without it.
"""

import itertools
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax.errors import UserError, unknown
from fct_jax.frozen.model import read_description, write_model
from fct_jax.models.preprocessing import Preprocessing
from fct_jax.storage.files import new_directory
from tools.pytorch.archives import Weights, read_weights, torch_or_none
from tools.pytorch.check import compare
from tools.pytorch.parts import ARCHITECTURES, Part, read_parts
from tools.script import Parser, status


class Checked(NamedTuple):
    """Descriptions by role, and how much embeddings differ from PyTorch's (None: not compared)."""

    descriptions: dict[str, dict]
    difference: float | None


def parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="the PyTorch model")
    add("--out", type=Path, required=True, metavar="RUN", help="the run to make; must not exist")
    add("--arch", help=f"expected architecture: {', '.join(ARCHITECTURES)}")
    add("--embedding_dim", type=int, metavar="D", help="expected size of an embedding")
    add("--num_classes", type=int, metavar="C", help="expected rows of the classifier")
    add("--width", type=int, metavar="W", help="expected channels of the first stage")
    add(
        "--last_nonlin",
        choices=("true", "false"),
        help="whether FCT's backbone ends in a ReLU; weights do not tell (default: what agrees "
        "with a TorchScript archive, else true)",
    )
    add(
        "--normalize_embedding",
        action="store_true",
        help="FCT's backbone divides embeddings by their length; weights do not tell (default: "
        "what agrees with the archive of a backbone, else not)",
    )
    images = parser.add_argument_group("preprocessing of images, kept in the run")
    images.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="side of the images that the model was trained on; needed for all models of images",
    )
    images.add_argument(
        "--resize",
        type=int,
        default=0,
        metavar="PIXELS",
        help="shorter side before the centre crop, 256 for ImageNet (default 0: squash to --size)",
    )
    for name, default in (("mean", Preprocessing.mean), ("std", Preprocessing.std)):
        images.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            default=default,
            help=f"of values in 0…1 (default {' '.join(map(str, default))})",
        )
    runs = parser.add_argument_group("the runs that a transformation belongs to")
    runs.add_argument("--old", metavar="RUN", help="whose embeddings it takes")
    runs.add_argument("--side", metavar="RUN", help="its side information")
    runs.add_argument("--new", metavar="RUN", help="whose embeddings it approximates")
    return parser


def run(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    if options.arch is not None and options.arch not in ARCHITECTURES:
        raise unknown("architecture", options.arch, ARCHITECTURES)
    if options.out.exists():
        raise UserError(f"{options.out} exists already; nothing was overwritten")
    weights = read_weights(options.file)
    try:
        parts = read_parts(weights.state, extra=weights.archive is not None)
        _check_expected(options, parts)
        doubt = _doubt_of_size(options, parts)
        preprocessing = Preprocessing(
            size=options.size or Preprocessing.size,
            resize=options.resize or None,
            mean=tuple(options.mean),
            std=tuple(options.std),
        )
        checked = _checked(options, parts, weights, preprocessing)
    except UserError as error:
        raise UserError(f"{options.file}: {error}; nothing was written") from error
    try:
        _write(options, parts, checked, archive=weights.archive is not None)
    except OSError as error:
        raise UserError(f"cannot write {options.out}: {error}") from error
    if doubt:
        print(f"warning: {doubt}", file=sys.stderr)


# Sizes at which a stem's feature maps are neither costly nor shrunk to one pixel too early: a 3×3
# stem without pooling belongs to 32-px images and 112-px faces.
_LARGEST_OF_SMALL_STEM, _SMALLEST_OF_LARGE_STEM = 128, 96


def _doubt_of_size(options, parts: dict[str, Part]) -> str:
    """Return why --size may be wrong, or "" if nothing speaks against it.

    Raises UserError if it is missing, or has no effect.
    """
    found = [part.description for part in parts.values()]
    stems = {
        bool(description["kwargs"].get("small_stem"))
        for description in found
        if description["kind"] == "backbone"
    }
    if not stems:
        return ""
    stem = "a small stem (3×3, no pooling), usual for images of 32 px, or faces of 112 px"
    if True not in stems:
        stem = "a large stem (7×7, pooled), usual for images of about 224 px"
    if options.size is None:
        raise UserError(
            "--size is missing: weights do not tell the side of the images that the model was "
            f"trained on; these have {stem}"
        )
    if options.size < 1:
        raise UserError(f"--size must be at least 1 pixel, not {options.size}")
    small = True in stems and options.size > _LARGEST_OF_SMALL_STEM
    if small or (True not in stems and options.size < _SMALLEST_OF_LARGE_STEM):
        return (
            f"the weights have {stem}; with --size {options.size} they agree with PyTorch, but if "
            "they were trained at another size, the embeddings are much worse than they could be"
        )
    return ""


def _check_expected(options, parts: dict[str, Part]) -> None:
    """Raise UserError unless the weights agree with the command line."""
    found = [part.description for part in parts.values()]
    names = [description["name"] for description in found]
    # "resnet18" may also name the trunk of a backbone with a projection.
    if options.arch and options.arch not in (
        *names,
        *(n.removesuffix("_projection") for n in names),
    ):
        raise UserError(f"the weights are of {' and '.join(names)}, not --arch {options.arch}")
    final = (parts.get("transformation") or parts["model"]).description
    useless = [] if final["kind"] == "transformation" else ["old", "side", "new"]
    if final["name"] == "lce" and options.side:
        raise UserError("--side: LCE's transformation takes old embeddings alone")
    useless = ["old", "side"] if "old" in parts else useless  # the file itself holds them
    for key in useless:
        if getattr(options, key):
            weights = " and ".join(names)
            raise UserError(f"--{key} is for a transformation alone; the weights are of {weights}")
    if not any(map(_has_nonlin, found)):
        for key in ("last_nonlin", "normalize_embedding"):
            if getattr(options, key):
                raise UserError(f"--{key} is for FCT's backbones; the weights are of {names[0]}")
    kwargs = [description["kwargs"] for description in found]
    values = {
        "embedding_dim": {final["dim"]},
        "num_classes": {k.get("num_classes") for k in kwargs if k.get("has_classifier", True)},
        "width": {k.get("width") for k in kwargs},
    }
    for key, known in values.items():
        wanted = getattr(options, key)
        if wanted is not None and wanted not in known:
            there = " and ".join(str(value) for value in sorted(known - {None})) or "none"
            raise UserError(f"the weights have {key} {there}, not --{key} {wanted}")


def _checked(
    options, parts: dict[str, Part], weights: Weights, preprocessing: Preprocessing
) -> Checked:
    """Return descriptions whose embeddings agree with PyTorch's. Raises UserError if none do."""
    known = _linked(options, parts, preprocessing)
    # The weights leave some options open: try them, and keep those whose output agrees.
    open_roles = [
        role
        for role, description in known.items()
        if weights.archive is not None and _has_nonlin(description)
    ]
    if torch_or_none() is None:
        return Checked(known, None)
    failure = None
    for choice in itertools.product(*(_forms(options, role) for role in open_roles)):
        tried = {role: dict(description) for role, description in known.items()}
        for role, form in zip(open_roles, choice, strict=True):
            tried[role]["kwargs"] = {**tried[role]["kwargs"], **form}
        try:
            return Checked(tried, compare(tried, parts, weights.archive))
        except UserError as error:
            failure = failure or error
    left_out = [name for part in parts.values() for name in part.left_out]
    hint = f"; weights without a place in the run: {', '.join(left_out)}" if left_out else ""
    raise UserError(f"{failure}{hint}") from failure


def _forms(options, role: str) -> list[dict]:
    """Return the forms of a ResNet that weights and options leave open, likeliest first."""
    nonlin = (True, False) if options.last_nonlin is None else (options.last_nonlin == "true",)
    # Joined models are not normalised in between, as published.
    normalized = (True,) if options.normalize_embedding else (False, True)[: 1 + (role == "model")]
    return [{"last_nonlin": a, "normalize_embedding": b} for b in normalized for a in nonlin]


def _linked(options, parts: dict[str, Part], preprocessing) -> dict[str, dict]:
    """Return the descriptions as ``model.json`` takes them, without our runs' fingerprints."""
    found = {}
    for role, part in parts.items():
        # The file's name is left out: a model has the same fingerprint wherever it comes from.
        description = dict(part.description)
        if description["kind"] == "backbone":
            # The data set is unknown; commands ask for one.
            description |= {"preprocessing": preprocessing.to_dict(), "data": {}}
            if _has_nonlin(description):
                description["kwargs"] = {
                    **description["kwargs"],
                    "last_nonlin": options.last_nonlin != "false",
                    "normalize_embedding": options.normalize_embedding,
                }
        else:
            alone = options.side or description["old_dim"] != description["side_dim"]
            description["needs_side"] = bool("side" in parts or (role == "model" and alone))
            for of, dim in (("old", "old_dim"), ("side", "side_dim"), ("new", "dim")):
                where = getattr(options, of)
                description[f"{of}_fingerprint"] = where and _fingerprint(
                    where, of, description[dim]
                )
        found[role] = description
    return found


def _has_nonlin(description: dict) -> bool:
    """Return whether ``last_nonlin`` is an option: it is for a ResNet without a projection."""
    return description["kind"] == "backbone" and not description["name"].endswith("_projection")


def _fingerprint(where: str, role: str, dim: int) -> str:
    description = read_description(where)
    if description["dim"] != dim:
        raise UserError(
            f"--{role} {where} gives embeddings of {description['dim']}, but {dim} are needed"
        )
    return description["fingerprint"]


def _write(options, parts: dict[str, Part], checked: Checked, archive: bool) -> None:
    """Write all runs or none, and print a line about each."""
    lines = []
    with new_directory(options.out) as folder:
        fingerprints = {}
        for role in ("old", "side", "transformation", "model"):
            if role not in parts:
                continue
            description, below = checked.descriptions[role], role in ("old", "side")
            if role == "transformation":
                for of in ("old", "side"):
                    description[f"{of}_fingerprint"] = fingerprints.get(of)
            target = (folder / role if below else folder) / "model"
            target.parent.mkdir(exist_ok=True)
            fingerprints[role] = write_model(target, description, parts[role].variables)
            where = options.out / role if below else options.out
            lines.append(
                f"{where}: {description['name']}, embeddings of dimension {description['dim']}, "
                f"model {fingerprints[role]}"
            )
            if _has_nonlin(description) and not (archive or options.last_nonlin):
                lines.append("  assumed to end in a ReLU (if it does not: --last_nonlin false)")
            if description.get("needs_side") is False and description["name"] != "lce":
                lines.append("  without side information (if it was trained with some: --side RUN)")
            if parts[role].left_out:
                lines.append(f"  left out: {', '.join(parts[role].left_out)}")
    if checked.difference is None:
        lines.append("not compared with PyTorch, which is not installed")
    else:
        lines.append(
            f"embeddings agree with PyTorch's to {checked.difference:.0e} of their largest value"
        )
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(status(run))
