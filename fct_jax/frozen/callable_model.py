"""Any Python function ``images -> embeddings`` in place of a run, named "module:function".

    # mymodels.py, in the current directory or on PYTHONPATH
    def embed(images):      # uint8 (N, S, S, 3)
        return net(images)  # (N, D), anything that NumPy takes as an array
    embed.image_size = 160  # S, in pixels; 224 by default

    python -m fct_jax.embed … --config.model=mymodels:embed --config.data.name=cifar100

It can replace an old, new or side run for embedding: the function is never trained or traced, and
has no classifier.
"""

import hashlib
import math

import numpy as np

from fct_jax.errors import UserError
from fct_jax.models.preprocessing import Preprocessing
from fct_jax.runtime.plugins import brief, imported

_PROBES = 4  # images whose embeddings name the model


class CallableModel:
    """A function as a frozen embedding model; what it offers is like a run's ``Embedder``.

    Attributes:
      name: "module:function".
      dim: D, the size of an embedding.
      fingerprint: hash of the name and of the embeddings of four fixed images, rounded to a
        hundredth of the largest value, so that the noise of another device does not change it.
      classifier: None.
      preprocessing: to (image_size, image_size); nothing is normalised.
    """

    classifier = None
    variables = None

    def __init__(self, name: str):
        """Import the function and try it. Raises UserError if it cannot be used."""
        self.name = name
        self.description = {"kind": "callable", "data": {}}
        self._function = _find(name)
        size = getattr(self._function, "image_size", Preprocessing.size)
        if not isinstance(size, int):
            raise UserError(f"{name}.image_size must be a whole number of pixels, not {size!r}")
        self.preprocessing = Preprocessing(size=size)
        self.dim = None
        rng = np.random.default_rng(0)
        probes = self.run(rng.integers(0, 256, (_PROBES, size, size, 3), np.uint8))
        self.dim = probes.shape[1]
        self.fingerprint = _fingerprint(name, probes)

    def run(self, images, flip=None) -> np.ndarray:
        """Return (N, D) float32 of uint8 images (N, H, W, 3); ``flip`` (N,): mirrored first.

        Raises UserError if the function fails, or if its result has a wrong shape or is not finite.
        """
        images = np.asarray(images)
        size = self.preprocessing.size
        if images.shape[1:3] != (size, size):
            images = np.stack([self.preprocessing.on_host(image) for image in images])
        if flip is not None:
            images = np.where(np.asarray(flip)[:, None, None, None], images[:, :, ::-1], images)
        try:
            found = np.asarray(self._function(np.ascontiguousarray(images)))
        except Exception as error:  # a user's function may raise anything
            raise UserError(
                f"{self.name} failed for {len(images)} images: {brief(error)}"
            ) from error
        if found.ndim != 2 or len(found) != len(images) or not found.shape[1]:
            raise UserError(
                f"{self.name} returned shape {found.shape} for {len(images)} images; "
                f"it must be ({len(images)}, D)"
            )
        if found.dtype.kind not in "fiu":
            raise UserError(f"{self.name} returned {found.dtype}; it must be real numbers")
        if self.dim is not None and found.shape[1] != self.dim:
            raise UserError(
                f"{self.name} returned dimension {found.shape[1]}, and {self.dim} before"
            )
        with np.errstate(over="ignore"):  # too large for float32 is infinite, and refused below
            found = found.astype(np.float32)
        finite = np.isfinite(found).all(1)
        if not finite.all():
            raise UserError(
                f"{self.name} returned a value that is not finite, for image "
                f"{int(np.argmin(finite))} of a batch of {len(images)}"
            )
        return found

    def embed(self, images, batch_size: int = 256) -> np.ndarray:
        """Return (N, D) float32 of uint8 images (N, H, W, 3) of any one size."""
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise UserError(f"images must be (N, H, W, 3) uint8, not {images.shape} {images.dtype}")
        blocks = (images[i : i + batch_size] for i in range(0, len(images), batch_size))
        return np.concatenate(
            [np.empty((0, self.dim), np.float32), *(self.run(block) for block in blocks)]
        )


def _find(name: str):
    function = imported(name, "function")
    if not callable(function):
        raise UserError(f"{name} must be a function, but it is of type {type(function).__name__}")
    return function


def _fingerprint(name: str, embeddings: np.ndarray) -> str:
    largest = float(np.abs(embeddings).max()) or 1.0
    rounded = np.rint(embeddings / largest * 100).astype(np.int8)
    digest = hashlib.sha256(name.encode())
    digest.update(str((rounded.shape, round(8 * math.log2(largest)))).encode())
    digest.update(rounded.tobytes())
    return digest.hexdigest()[:16]
