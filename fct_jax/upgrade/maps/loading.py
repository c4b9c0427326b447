"""Opening a map by its directory, a transformation's run, a name or a function."""

import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from fct_jax.errors import UserError
from fct_jax.frozen.runs import is_run
from fct_jax.runtime.plugins import find, is_import_name
from fct_jax.upgrade.maps.functions import Called, Function, Network, load_function
from fct_jax.upgrade.maps.map import FORMAT_VERSION, KnownPairs, Map
from fct_jax.upgrade.maps.methods import METHODS, Method

_UNCERTAINTY = "uncertainty_"  # prefix of the names of the regressor's arrays


def load_map(where) -> Map:
    """Load a map.

    Args:
      where: the directory of a map that ``fit`` made; the run of a transformation's training (fct,
        fastfill, or the ``gallery`` that an LCE training leaves); "identity", for a new model that
        is compatible with the old one; or "module:name": a Python function from old vectors
        (n, do) to new ones (n, dn), or to a pair of these and log-variances (n,). Another package
        may give such a function a short name by an entry point of the group ``fct_jax.maps``.

    Raises:
      UserError: there is no such map, or it is damaged.

    Example::

        h = load_map("map")                     # a directory
        h = load_map("runs/lce/gallery")        # a run
        h = load_map("identity").for_dim(384)   # the unchanged vectors
        h = load_map("mycode:whitened")         # a function in mycode.py
    """
    if isinstance(where, Map):
        return where
    folder = Path(where).expanduser()
    if is_run(folder):
        return map_of_run(folder)
    if (folder / "map.json").is_file():
        return _of_directory(folder)
    if not folder.exists():
        found = _named(str(where))
        if found is not None:
            return found
    if (folder / "config.json").is_file():
        raise UserError(
            f"{folder} is a run without model/, which training exports at its end: "
            "finish the training, or restore the folder"
        )
    raise UserError(
        f"no map in {folder}: map.json is missing; give a map's directory, a transformation's run, "
        "'identity' or module:name"
    )


def map_of_run(run, scale: float = 1.0) -> Map:
    """Return the run of a transformation's training as a map with results times ``scale``."""
    from fct_jax.frozen.model import Transformer, load_model

    model = load_model(run)
    if not isinstance(model, Transformer):
        raise UserError(f"{run} is the run of a backbone; a map needs the run of a transformation")
    if model.needs_side:
        raise UserError(f"{run} was trained with side information, which a map cannot take")
    described = {
        "method": model.name,
        "dim_in": model.description["old_dim"],
        "dim_out": model.dim,
        "old_fingerprint": model.old_fingerprint,
        "new_fingerprint": model.new_fingerprint,
    }
    return Map(described, Network(model, scale))


def _named(name: str) -> Map | None:
    """Return the map of a name that needs no fitting; None if the text names nothing."""
    if not (is_import_name(name) or name.isidentifier()):
        return None
    try:
        found = find(METHODS, name, "map", "maps")
    except UserError:
        if is_import_name(name):
            raise
        return None
    described = {"method": name, "dim_in": None, "dim_out": None}
    if isinstance(found, Function):
        return Map(described, found)
    if isinstance(found, Method):
        if found.fixed is None and not found.fitted:
            raise UserError(f"{name} is not a map by itself: {found.refusal(0, 0, 0)}")
        if found.fixed is None:
            raise UserError(f"{name} must be fitted first: `fct-jax fit OLD NEW --method {name}`")
        return Map(described, found.fixed())
    if not callable(found):
        raise UserError(
            f"{name} must be a map or a function, but it is of type {type(found).__name__}"
        )
    return Map(described, Called(name, found))


def _of_directory(folder: Path) -> Map:
    try:
        description = json.loads((folder / "map.json").read_text())
        arrays = safetensors.numpy.load_file(folder / "weights.safetensors")
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        raise UserError(f"the map in {folder} cannot be read: {error}") from None
    version = description.get("format_version", 0)
    if version > FORMAT_VERSION:
        raise UserError(
            f"the map in {folder} has format version {version}; "
            f"this fct_jax reads versions up to {FORMAT_VERSION}"
        )
    known = fitted = None
    if (folder / "known.npz").is_file():
        with np.load(folder / "known.npz", allow_pickle=False) as file:
            known = KnownPairs(file["ids"], file["old"], file["new"])
    if (folder / "fitted.npy").is_file():
        fitted = np.load(folder / "fitted.npy", allow_pickle=False)
    uncertainty = {k: v for k, v in arrays.items() if k.startswith(_UNCERTAINTY)}
    of_function = {k: v for k, v in arrays.items() if k not in uncertainty}
    # Version 1 had no key for the kind.
    kind = description.get("function", "network" if is_run(folder / "run") else "linear")
    function = load_function(kind, of_function, folder)
    saved = description.pop("fingerprint", None)
    found = Map(description, function, uncertainty, known, fitted)
    if version < 2:
        # The old fingerprint also covered the time of fitting. Unfinished upgrades refer to it.
        found.fingerprint = found.description["fingerprint"] = saved
    elif saved != found.fingerprint:
        raise UserError(
            f"the map in {folder} is damaged: its weights do not have the fingerprint of map.json"
        )
    return found
