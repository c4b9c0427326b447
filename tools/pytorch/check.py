"""Compares a run's embeddings with PyTorch's."""

import warnings

import jax
import numpy as np

from fct_jax.errors import UserError
from fct_jax.frozen.model import Embedder, Transformer
from fct_jax.models.preprocessing import Preprocessing
from fct_jax.models.torch_import import to_numpy
from tools.pytorch.archives import first_line, torch_or_none
from tools.pytorch.parts import Part

TOLERANCE = 1e-4  # relative to the largest absolute value of an embedding
COUNT = 4  # number of random images or vectors to compare


def compare(descriptions: dict[str, dict], parts: dict[str, Part], archive=None) -> float:
    """Return the `difference` between embeddings of random inputs and PyTorch's.

    Args:
      descriptions: the contents of ``model.json`` by role; fingerprints may be missing.
      parts: as ``parts.read_parts`` returns them, with the same roles.
      archive: the PyTorch program to compare with; None: a module of ``models``.

    Raises:
      UserError: if the difference is above the tolerance, or the program fails.
    """
    runs = {
        role: _load({"fingerprint": "", **description}, parts[role].variables)
        for role, description in descriptions.items()
    }
    module = _module(descriptions, parts) if archive is None else archive
    final = runs.get("transformation") or runs["model"]
    if "old" in runs:
        images, pixels = _random_images(runs["old"].preprocessing)
        old = _embed(runs["old"], images)
        side = _embed(runs["side"], images) if "side" in runs else old
        return check(_embed(final, old, side), _embed_torch(module, pixels))
    if isinstance(final, Embedder):
        images, pixels = _random_images(final.preprocessing)
        return check(_embed(final, images), _embed_torch(module, pixels))
    if final.description["name"] == "lce":
        (vectors,) = _random_vectors(final.dim)
        return check(_embed(final, vectors), _embed_torch(module, vectors, flat=True))
    vectors = _random_vectors(*(final.description[key] for key in ("old_dim", "side_dim")))
    return check(_embed(final, *vectors), _embed_torch(module, *vectors))


def check(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return their `difference`. Raises UserError if it is NaN or exceeds the tolerance."""
    if ours.shape != theirs.shape:
        raise UserError(f"the PyTorch model gives embeddings {theirs.shape}, the run {ours.shape}")
    found = difference(ours, theirs)
    if not found <= TOLERANCE:
        raise UserError(
            f"the run's embeddings differ from those of the PyTorch model by {found:.1e} "
            f"of their largest value, more than {TOLERANCE:.0e}"
        )
    return found


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, relative to the largest absolute value of ``theirs``."""
    with np.errstate(invalid="ignore"):  # non-finite values give NaN, which is refused
        return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def load_strictly(module, state) -> None:
    """Load weights into a module of ``models``; every name must match.

    Batch counters may be missing (embeddings do not depend on them), and the weights of a 1×1
    convolution may be a matrix.
    """
    torch = torch_or_none()
    wanted = module.state_dict()
    given = {n: torch.zeros_like(v) for n, v in wanted.items() if n.endswith("batches_tracked")}
    for name, value in state.items():
        if name not in given:
            given[name] = torch.from_numpy(to_numpy(value).copy())
            if name in wanted:
                given[name] = given[name].reshape(wanted[name].shape)
    module.load_state_dict(given, strict=True)


def _random_images(preprocessing: Preprocessing) -> tuple[np.ndarray, np.ndarray]:
    """Return images (COUNT, size, size, 3) uint8, each noise around a grey, and model inputs."""
    size, rng = preprocessing.size, np.random.default_rng(0)
    grey = np.linspace(30, 220, COUNT)[:, None, None, None]
    noise = rng.normal(0, 60, (COUNT, size, size, 3))
    images = np.clip(grey + noise, 0, 255).astype(np.uint8)
    return images, np.asarray(preprocessing.on_device(images))


def _random_vectors(*dims: int) -> list[np.ndarray]:
    """Return a (COUNT, D) float32 for each D."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=(COUNT, dim)).astype(np.float32) for dim in dims]


def _embed(model: Embedder | Transformer, *inputs: np.ndarray) -> np.ndarray:
    """Return (COUNT, D) embeddings of a run, or (COUNT, D + 1) with the uncertainty as the last."""
    with jax.default_matmul_precision("highest"):
        if isinstance(model, Embedder):
            return np.asarray(model.run(*inputs))
        embedding, log_variance = model.run(*inputs)
    if log_variance is None:
        return np.asarray(embedding)
    return np.concatenate([embedding, log_variance[:, None]], 1)


def _embed_torch(module, *inputs: np.ndarray, flat: bool = False) -> np.ndarray:
    """Return a PyTorch module's result for normalised images (N, H, W, 3), or vectors (N, D).

    FCT's modules take vectors as (N, D, 1, 1); ``flat`` modules take them as (N, D).

    Raises UserError if the module fails, or if its result is neither one tensor nor a pair with the
    embedding last, which `ResNet` returns.
    """
    torch = torch_or_none()
    tensors = [torch.from_numpy(array if flat else _nchw(array)) for array in inputs]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            out = module(*tensors)
    except Exception as error:  # an archive's program can raise almost anything
        raise UserError(f"the PyTorch model failed: {first_line(error)}") from error
    if isinstance(out, tuple):
        out = out[-1]
    if not torch.is_tensor(out) or out.ndim < 2 or len(out) != COUNT:
        shape = f" {tuple(out.shape)}" if torch.is_tensor(out) else ""
        raise UserError(f"the PyTorch model gives a {type(out).__name__}{shape}, not embeddings")
    return to_numpy(out).reshape(len(out), -1)


def _nchw(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2), np.float32)
    return np.asarray(array, np.float32)[:, :, None, None]


def _load(description: dict, variables) -> Embedder | Transformer:
    kind = Embedder if description["kind"] == "backbone" else Transformer
    return kind(description, variables)


def _module(descriptions: dict[str, dict], parts: dict[str, Part]):
    """Return the parts as one PyTorch module, joined if there are several."""
    from tools.pytorch import models as torch_models  # PyTorch is needed only here

    modules = {}
    for role, description in descriptions.items():
        modules[role] = torch_models.build(description, parts[role].classifier)
        load_strictly(modules[role], parts[role].state)
    if "model" in modules:
        return modules["model"]
    if descriptions["transformation"]["name"] == "lce":
        joined = torch_models.ModelWithTransformation(modules["old"], modules["transformation"])
        return joined.eval()
    old = torch_models.FeatureExtractor(modules["old"])
    side = torch_models.FeatureExtractor(modules["side"]) if "side" in modules else old
    return torch_models.TransformedOldModel(old, side, modules["transformation"]).eval()
