"""Read PyTorch weights from files."""

import importlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from fct_jax.errors import UserError
from fct_jax.storage.ids import listed

# Training scripts put the weights of a checkpoint under these keys.
_WRAPPERS = ("state_dict", "model", "model_state_dict")


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """Return the arrays of a file by name.

    The file is a .safetensors file, or one that PyTorch reads: .pth, .pt, .bin or .pth.tar.
    PyTorch files are read with ``weights_only=True``, so that a hostile file runs no code. A
    checkpoint that holds the weights under "state_dict", "model" or "model_state_dict" is
    unwrapped. The arrays suit every function of `torch_import`.

    Raises:
        UserError: the file does not exist, has an unknown extension, is damaged or holds no
            weights, or PyTorch is needed and missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"cannot read {path}: {_line(error)}") from error
    if path.suffix not in (".pth", ".pt", ".bin", ".tar"):
        raise UserError(f"{path}: weights end in .safetensors, .pth, .pt, .bin or .pth.tar")
    return _read_torch(path)


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise UserError(
            f"reading {path} needs PyTorch (pip install torch), or convert it to .safetensors"
        ) from error
    with path.open("rb") as file:
        if file.read(1) not in (b"P", b"\x80", b""):  # archive, pickle or empty file
            raise UserError(f"cannot read {path}: it is no PyTorch file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes PyTorch raise almost anything
        raise UserError(f"cannot read {path}: {_line(error)}") from error
    for key in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = isinstance(state, dict) and all(torch.is_tensor(value) for value in state.values())
    if not tensors or not state:
        keys = listed(list(state)) if isinstance(state, dict) else ""
        found = f"the keys {keys}" if keys else type(state).__name__
        raise UserError(
            f"{path} holds no weights: expected a mapping from name to tensor, or one under "
            f"{' or '.join(map(repr, _WRAPPERS))}, not {found}"
        )
    return dict(state)


def _line(error: Exception) -> str:
    """Return the first line of another library's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
