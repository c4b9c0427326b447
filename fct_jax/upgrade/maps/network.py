"""FCT and FastFill maps, trained by the train command's transformation task on a sample."""

import contextlib
import io
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from fct_jax import config as configs
from fct_jax.errors import UserError
from fct_jax.frozen.model import load_model
from fct_jax.runtime.progress import console
from fct_jax.runtime.sharding import make_mesh
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.named import classifier_of
from fct_jax.upgrade.maps.functions import Network
from fct_jax.upgrade.maps.methods import Pairs

_LARGEST_BATCH = 1024
_BATCHES = 8  # batches per epoch, about, of a small sample
_EPOCHS = (10, 80)  # the fewest, and the published number
# Floating-point operations of a training whose length we choose: about five minutes on two CPU
# cores.
_WORK = 3e13
_DECAY = 1e-4  # weight decay of the linear classifier, per sample


def fit_learned(kind: str, pairs: Pairs) -> Network:
    """Train h(old) ≈ new as published, on vectors scaled to a standard deviation of about 1.

    The scale matters because of weight decay: the entries of unit vectors are so small that their
    squared error would hardly count beside it.

    Args:
      kind: "fct" (CVPR 2022, https://arxiv.org/abs/2112.02805) or "fastfill" (ICLR 2023,
        https://arxiv.org/abs/2303.04766). With labels FastFill also classifies the mapped vectors;
        without labels it learns its uncertainty only from the alignment, as a Gaussian variance.
      pairs: the pairs to fit on. Their ``classifier`` is the new model's: (C, dn) array, ``.npy``
        or run; with None a linear one is fitted on the new vectors. ``training.epochs`` 0 means
        `affordable_epochs`; ``training.batch_size`` 0 means 1,024, or an eighth of a smaller
        sample.
    """
    old, new, labels, training = pairs.old, pairs.new, pairs.labels, pairs.training
    epochs = training.epochs or affordable_epochs(len(new), old.dim, new.dim, training.inner_dim)
    console.print(f"{kind}: {epochs} epochs of {len(new):,} pairs")
    scale = float(np.sqrt(np.mean(np.square(np.asarray(new.vectors, np.float64))))) or 1.0
    config = configs.transformation()
    config.model.name = kind
    config.model.inner_dim = training.inner_dim
    config.epochs = epochs
    config.optimizer.schedule.warmup_epochs = min(5, epochs // 8)
    config.batch_size = training.batch_size or _batch_size(len(new))
    config.seed = pairs.seed
    config.views = 1
    config.evaluate_every_epochs = epochs
    config.checkpoint_every_steps = 10**9  # only at the end
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        scaled = np.asarray(new.vectors, np.float32) / np.float32(scale)
        if kind == "fastfill" and labels is not None:
            weights, labels = _classifier(pairs.classifier, np.asarray(labels), scaled, scale)
            np.save(folder / "classifier.npy", weights)
            config.classifier = str(folder / "classifier.npy")
            config.loss.discriminative_weight = 1.0
        for role, found, vectors in (("old", old, old.vectors), ("new", new, scaled)):
            meta = {"fingerprint": found.fingerprint}
            EmbeddingSet.of(vectors, labels=labels, meta=meta).write(folder / role)
            config[role] = str(folder / role)
        _train(config, folder / "run")
        return Network(load_model(folder / "run"), scale)


def affordable_epochs(count: int, do: int, dn: int, inner_dim: int) -> int:
    """Return the published 80 epochs, or fewer (at least 10) for a large sample.

    Each sample passes each weight three times, with a multiplication and an addition.
    """
    branches = 2 * (do * 2 * do + 2 * do * 2 * dn)
    weights = branches + 4 * dn * inner_dim + inner_dim**2 + inner_dim * dn
    fewest, most = _EPOCHS
    return int(np.clip(_WORK / (6 * count * weights), fewest, most))


def _batch_size(count: int) -> int:
    """Return a batch size that is a multiple of the number of devices."""
    devices = make_mesh().size
    wanted = min(_LARGEST_BATCH, max(16, count // _BATCHES), count)
    return max(devices, wanted // devices * devices)


def _train(config, workdir: Path) -> None:
    # The loop's messages name a temporary folder, so they are hidden; its progress bar is shown.
    from fct_jax.train.loop import train

    with contextlib.redirect_stdout(io.StringIO()), _own_sigterm():
        train(config, workdir)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restore the SIGTERM handler that the training loop replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: nothing was replaced
            signal.signal(signal.SIGTERM, before)


def _classifier(given, labels, scaled, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (C, dn) for the scaled vectors, and the labels as row numbers of them."""
    weights = classifier_of(given)
    if weights is None:
        _, numbered = np.unique(labels, return_inverse=True)
        return fit_classifier(scaled, numbered), numbered.astype(np.int64)
    if weights.shape[1] != scaled.shape[1]:
        raise UserError(
            f"the classifier must have shape (C, {scaled.shape[1]}), not {weights.shape}"
        )
    if labels.min() < 0 or labels.max() >= len(weights):
        raise UserError(
            f"labels run from {labels.min()} to {labels.max()}, "
            f"but the classifier has {len(weights)} classes"
        )
    return np.asarray(weights * scale, np.float32), labels


def fit_classifier(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Fit softmax regression without bias of labels 0 … C−1 on (N, D); return (C, D) float32."""
    count, dim = labels.max() + 1, vectors.shape[1]
    x, y = jnp.asarray(vectors, jnp.float32), jnp.asarray(labels)

    @jax.jit
    def objective(flat):
        weights = flat.reshape(count, dim)
        log_p = jax.nn.log_softmax(x @ weights.T)
        loss = -jnp.take_along_axis(log_p, y[:, None], axis=1).mean()
        return loss + _DECAY * jnp.sum(weights * weights)

    gradient = jax.jit(jax.value_and_grad(objective))

    def in_float64(flat):
        value, slope = gradient(jnp.asarray(flat, jnp.float32))
        return float(value), np.asarray(slope, np.float64)

    start = np.zeros(count * dim)
    found = scipy.optimize.minimize(
        in_float64, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}
    )
    return found.x.reshape(count, dim).astype(np.float32)
