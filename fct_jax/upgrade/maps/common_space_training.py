"""Training of a common space by gradient descent: strictly or nearly orthogonal, labels optional.

Source: "λ-Orthogonality Regularization for Compatible Representation Learning", NeurIPS 2025,
https://arxiv.org/abs/2509.16664. The paper does not state the factors of its losses, the
temperature, the steepness, the number of epochs, the batch size or the start; the
defaults of `Settings` for these are ours.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fct_jax.errors import UserError, unknown
from fct_jax.losses.lambda_orthogonality import lambda_orthogonality, multi_positive_contrastive
from fct_jax.upgrade.maps.common_space import (
    CommonSpace,
    fit_closed_form,
    rotation,
    skew_symmetric,
)

KINDS = ("strict", "relaxed")
STARTS = ("closed form", "identity")
PARTS = ("forward", "backward", "contrastive", "orthogonality")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the training of a common space.

    Attributes:
      kind: "strict": an orthogonal backward map without bias, for the data that the models were
        trained on. "relaxed": an affine map kept near orthogonal by L_λ, to adapt to other data.
      factors: factors of L_F (forward), L_B (backward) and L_C (contrastive).
      limit, steepness: λ and α of `lambda_orthogonality`.
      temperature: temperature of the contrastive loss.
      start: "closed form" begins at `fit_closed_form`, which may include a reflection; "identity"
        begins at B = I and F = 0, from where the strict form can only reach rotations.
      epochs, batch_size, learning_rate: settings of Adam; the published learning rate is 1e-3.
      seed: seed of the order of the samples.
    """

    kind: str = "strict"
    factors: tuple[float, float, float] = (1.0, 1.0, 1.0)
    limit: float = 12.0
    steepness: float = 1.0
    temperature: float = 0.1
    start: str = "closed form"
    epochs: int = 30
    batch_size: int = 512
    learning_rate: float = 1e-3
    seed: int = 0


def train_common_space(
    old: np.ndarray,
    new: np.ndarray,
    labels: np.ndarray | None = None,
    settings: Settings = Settings(),
) -> tuple[CommonSpace, np.ndarray]:
    """Train both maps together on stored vectors of the same items.

    The loss is ``w1 · mean |F(o) - B(n)|² + w2 · mean |B(n) - o|² + w3 · L_C (+ L_λ)``. Squares are
    summed over dimensions, in the second term over the first min(do, dn). L_C contrasts F(o) with
    B(n) and with o; without labels an item's only positive is itself.

    Args:
      old, new: (N, do), (N, dn), in the scale in which they are served.
      labels: (N,) integers, or None.
      settings: see `Settings`.

    Returns the space, and the mean of each part of the loss (PARTS) over the samples of each epoch,
    without its factor, (epochs, 4).

    Raises UserError for an unknown kind or start, or fewer than 2 pairs.

    Example: ``space, _ = train_common_space(old, new, labels, Settings(kind="relaxed"))``.
    """
    s = settings
    if s.kind not in KINDS:
        raise unknown("kind of common space", s.kind, KINDS)
    if s.start not in STARTS:
        raise unknown("start", s.start, STARTS)
    if len(old) != len(new) or len(new) < 2:
        raise UserError(
            f"a common space needs at least 2 items embedded by both models; there are "
            f"{len(old)} old and {len(new)} new vectors"
        )
    if labels is not None and np.shape(labels) != (len(new),):
        raise UserError(f"labels must have shape ({len(new)},), not {np.shape(labels)}")
    base, params = _start(old, new, s)
    items = np.arange(len(new)) if labels is None else np.unique(labels, return_inverse=True)[1]
    data = tuple(jnp.asarray(a) for a in (_single(old), _single(new), items))
    turned = jnp.asarray(base, jnp.float32)
    state = optax.adam(s.learning_rate).init(params)
    rng, history = np.random.default_rng(s.seed), []
    size = min(s.batch_size, len(new))
    for _ in range(s.epochs):
        order = rng.permutation(len(new))[: len(new) // size * size].reshape(-1, size)
        params, state, parts = _epoch(params, state, turned, data, jnp.asarray(order), s)
        history.append(np.asarray(parts))
    return _space(params, base, s), np.array(history).reshape(-1, 4)


def _start(old, new, s: Settings):
    """Return the fixed matrix that the strict form rotates, and the initial parameters."""
    do, dn = old.shape[1], new.shape[1]
    if s.start == "closed form":
        space = fit_closed_form(old, new, seed=s.seed)
    else:
        space = CommonSpace(np.eye(dn), np.zeros(dn), np.zeros((do, dn)), np.zeros(dn))
    params = {"forward": space.forward, "forward_bias": space.forward_bias}
    if s.kind == "strict":
        params["skew"] = np.zeros(dn * (dn - 1) // 2)
    else:
        params |= {"weight": space.backward, "bias": space.backward_bias}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}
    return space.backward, params


def _single(x):
    return np.asarray(x, np.float32)


@functools.partial(jax.jit, static_argnames="s")
@jax.default_matmul_precision("highest")
def _epoch(params, state, base, data, order, s: Settings):
    """Train one pass over the batches ``order`` (steps, B); also return the means of the parts."""
    optimizer = optax.adam(s.learning_rate)

    def step(carry, rows):
        params, state = carry
        batch = tuple(array[rows] for array in data)
        (_, parts), slope = jax.value_and_grad(_loss, has_aux=True)(params, base, batch, s)
        change, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, change), state), parts

    (params, state), parts = jax.lax.scan(step, (params, state), order)
    return params, state, jnp.mean(parts, axis=0)


def _loss(params, base, batch, s: Settings):
    old, new, items = batch
    if s.kind == "strict":
        moved = new @ (base @ _rotation(params["skew"], len(base)))
        penalty = jnp.float32(0)
    else:
        moved = new @ params["weight"] + params["bias"]
        penalty = lambda_orthogonality(params["weight"], s.limit, s.steepness)
    translated = old @ params["forward"] + params["forward_bias"]
    dim = min(old.shape[1], new.shape[1])

    def contrast(a, b):
        return jnp.mean(multi_positive_contrastive(a, b, items, items, s.temperature))

    parts = jnp.stack(
        [
            jnp.mean(jnp.sum(jnp.square(translated - moved), axis=-1)),
            jnp.mean(jnp.sum(jnp.square(moved[:, :dim] - old[:, :dim]), axis=-1)),
            contrast(translated, moved) + contrast(translated[:, :dim], old[:, :dim]),
            penalty,
        ]
    )
    return jnp.dot(jnp.asarray((*s.factors, 1.0)), parts), parts


def _rotation(upper, dim: int):
    """Return exp of the skew-symmetric matrix with this upper triangle."""
    rows, columns = np.triu_indices(dim, 1)
    matrix = jnp.zeros((dim, dim), upper.dtype).at[rows, columns].set(upper)
    return jax.scipy.linalg.expm(matrix - matrix.T)


def _space(params, base, s: Settings) -> CommonSpace:
    found = {name: np.asarray(value, np.float64) for name, value in params.items()}
    if s.kind == "strict":
        # Computed again in float64, so that the result is orthogonal to its last digits.
        backward = base @ rotation(skew_symmetric(found["skew"], len(base)))
        bias = np.zeros(len(base))
    else:
        backward, bias = found["weight"], found["bias"]
    return CommonSpace(backward, bias, found["forward"], found["forward_bias"])
