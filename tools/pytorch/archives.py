"""Reads PyTorch files of every kind: TorchScript archives, checkpoints, plain weights.

No Python code from a file is run. A TorchScript archive does bring its own program, in a language
that can do less than Python, and that program is run to compare embeddings: use only archives that
you trust.
"""

import contextlib
import importlib
import re
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

from fct_jax.errors import UserError
from fct_jax.models import torch_import

# Training scripts store these with the weights; AdvBCT's stores a CfgNode and a NumPy number.
_DICTIONARIES = ("yacs.config.CfgNode",)
_OBJECTS = (
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float32DType",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType",
)


class Weights(NamedTuple):
    """The arrays of a file by name, and the program of a TorchScript archive (otherwise None)."""

    state: dict[str, Any]
    archive: Any


class Ignored:
    """Replaces an unneeded object of a checkpoint: accepts any arguments and does nothing."""

    def __new__(cls, *_):
        """Ignore the arguments."""
        return super().__new__(cls)

    def __setstate__(self, _):
        """Ignore the content."""


def read_weights(path: Path) -> Weights:
    """Return the weights in a file.

    Raises:
        UserError: if the file does not exist, is damaged, is of no known kind or would run code,
            or if PyTorch is needed and not installed.
    """
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    if _is_archive(path):
        return _read_archive(path)
    try:
        with _ignored_objects():
            return Weights(torch_import.read_state_dict(path), None)
    except UserError as error:
        found = re.search(r"GLOBAL (\S+)", str(error.__cause__))
        if found is None:
            raise
        raise UserError(
            f"cannot read {path}: it holds {found[1]}, which could run code; save its weights alone"
        ) from error


def torch_or_none():
    """Return PyTorch, or None if it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def first_line(error: Exception) -> str:
    """Return the first line of PyTorch's message, without the traceback of an archive's program."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _is_archive(path: Path) -> bool:
    """Return whether a file is TorchScript: only TorchScript stores constants with the weights."""
    try:
        with zipfile.ZipFile(path) as file:
            return any(name.endswith("/constants.pkl") for name in file.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _read_archive(path: Path) -> Weights:
    torch = torch_or_none()
    if torch is None:
        raise UserError(f"{path} is a TorchScript archive, which needs PyTorch (pip install torch)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # all of TorchScript is deprecated
            archive = torch.jit.load(str(path), map_location="cpu").float().eval()
        state = dict(archive.state_dict())
    except Exception as error:  # a damaged archive makes PyTorch raise almost anything
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    if not state:
        raise UserError(f"{path} holds no weights; an archive made by torch.jit.freeze has none")
    return Weights(state, archive)


@contextlib.contextmanager
def _ignored_objects():
    """Context in which PyTorch reads checkpoints that hold objects of the classes above."""
    torch = torch_or_none()
    if torch is None:
        yield
        return
    # PyTorch fills only the kinds of dictionaries that it knows.
    stand_ins = [(OrderedDict, name) for name in _DICTIONARIES]
    stand_ins += [(Ignored, name) for name in _OBJECTS]
    with torch.serialization.safe_globals(stand_ins):
        yield
