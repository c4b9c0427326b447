"""Reading PyTorch files of every kind: TorchScript archives, checkpoints, plain weights.

No file's Python code is run. A TorchScript archive does bring a program of its own, in a language
without Python's reach, which is run to compare embeddings: take archives from where you trust.
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

# Training scripts keep these beside the weights; AdvBCT's has a CfgNode and a NumPy number.
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
    """Names and arrays of a file, and the program of a TorchScript archive (else None)."""

    state: dict[str, Any]
    archive: Any


class Ignored:
    """Stands for an object of a checkpoint that is not needed: takes anything, does nothing."""

    def __new__(cls, *_):
        """Forget the arguments."""
        return super().__new__(cls)

    def __setstate__(self, _):
        """Forget the content."""


def read_weights(path: Path) -> Weights:
    """Return the weights of a file.

    Raises:
        UserError: no such file, a file that is damaged or of no known kind, one that would run
            code, or PyTorch missing where it is needed.
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
    """Return whether it is TorchScript, which alone writes constants beside its weights."""
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
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript as a whole
            archive = torch.jit.load(str(path), map_location="cpu").float().eval()
        state = dict(archive.state_dict())
    except Exception as error:  # a damaged archive makes PyTorch raise almost anything
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    if not state:
        raise UserError(f"{path} holds no weights; an archive made by torch.jit.freeze has none")
    return Weights(state, archive)


@contextlib.contextmanager
def _ignored_objects():
    """Let PyTorch read, within the context, checkpoints that hold objects of the classes above."""
    torch = torch_or_none()
    if torch is None:
        yield
        return
    # PyTorch fills nothing but its own kinds of dictionaries.
    stand_ins = [(OrderedDict, name) for name in _DICTIONARIES]
    stand_ins += [(Ignored, name) for name in _OBJECTS]
    with torch.serialization.safe_globals(stand_ins):
        yield
