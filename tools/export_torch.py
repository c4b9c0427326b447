"""Write a run's model as PyTorch weights, under the names of the published code.

  python tools/export_torch.py RUN --out FILE.pth
  python tools/export_torch.py RUN --out FILE.safetensors

Backbones and transformations get FCT's names, backbones with a projection AdvBCT's;
``tools/pytorch/models.py`` has modules that load the weights. If PyTorch is installed, the tool
embeds a few random images (or vectors) with both models, and writes nothing if they differ by more
than 1e-4 of the largest value. A .safetensors file needs no PyTorch.
"""

import os
import sys
from pathlib import Path

import safetensors
import safetensors.numpy

sys.path.insert(0, str(Path(__file__).parent.parent))  # run as a file or as a module

from fct_jax.errors import UserError
from fct_jax.frozen.model import load_model
from tools.pytorch.archives import torch_or_none
from tools.pytorch.check import compare
from tools.pytorch.parts import Part, to_torch
from tools.script import Parser, status

ENDINGS = (".pth", ".safetensors")


def parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="the run to export")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="a .pth or .safetensors file"
    )
    return parser


def run(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    out = options.out
    if out.suffix not in ENDINGS:
        raise UserError(f"--out {out} must end in {' or '.join(ENDINGS)}")
    if out.exists():
        raise UserError(f"{out} exists already; nothing was overwritten")
    torch = torch_or_none()
    if torch is None and out.suffix == ".pth":
        raise UserError(f"writing {out} needs PyTorch (pip install torch); .safetensors does not")
    model = load_model(options.run)
    state = to_torch(model.description, model.variables)
    found = None
    if torch is not None:
        part = Part(model.description, model.variables, state)
        try:
            found = compare({"model": model.description}, {"model": part})
        except UserError as error:
            raise UserError(f"{options.run}: {error}; nothing was written") from error
    write(state, out, torch)
    print(f"{out}: {len(state)} arrays of {model.description['name']}, model {model.fingerprint}")
    if found is None:
        print("not compared with PyTorch, which is not installed")
    else:
        print(f"embeddings agree with PyTorch's to {found:.0e} of their largest value")


def write(state: dict, out: Path, torch) -> None:
    """Write the file as a whole or not at all."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error}") from error
    try:
        if out.suffix == ".pth":
            torch.save({name: torch.from_numpy(value) for name, value in state.items()}, partial)
        else:
            safetensors.numpy.save_file(state, partial)
        partial.rename(out)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot write {out}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(status(run))
