"""Embedding-Converter: an MLP from old to new vectors that also keeps relations between items.

Source: "Embedding-Converter: A Unified Framework for Cross-Model Embedding Transformation", ACL
2025, https://aclanthology.org/2025.acl-long.1237. Its code is not public: that relations are
compared by the absolute value and within a batch is our reading of the paper.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import as_vectors, check_same_length, unit_rows
from fct_jax.evaluate.search import knn
from fct_jax.losses.precision import unit
from fct_jax.losses.relational import embedding_converter, relation_change
from fct_jax.upgrade.maps.functions import selu

_BLOCK = 8192  # rows mapped at a time
_CHUNK = 100  # steps compiled into one loop


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a converter's training; those of the architecture and of Adam are published.

    Attributes:
      width: width of the hidden layers, in multiples of the new size.
      layers: number of hidden layers.
      global_weight, local_weight: α and β, the weights of the two relational losses.
      neighbours: k; each sample draws one of its k nearest items in the new space per step.
      squared: compare relations by squares instead of absolute values.
      steps, batch_size, learning_rate: the paper uses 50,000 steps of 64 samples over millions of
        pairs; fewer steps suffice for a sample.
      seed: seed of the weights and of the draws.
    """

    width: float = 5.0
    layers: int = 3
    global_weight: float = 0.1
    local_weight: float = 0.1
    neighbours: int = 100
    squared: bool = False
    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Converter:
    """Dense layers with SELU between them and unit-length results.

    layers: one (weight (in, out), bias (out,)) per layer, float32.
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def __call__(self, old) -> np.ndarray:
        """Map rows (N, do) → (N, dn) float32 of unit length, on the CPU."""
        parts = [np.zeros((0, len(self.layers[-1][1])), np.float32)]
        for start in range(0, len(old), _BLOCK):
            x = np.asarray(old[start : start + _BLOCK], np.float32)
            for weight, bias in self.layers[:-1]:
                x = selu(x @ weight + bias)
            weight, bias = self.layers[-1]
            parts.append(unit_rows(x @ weight + bias).astype(np.float32))
        return np.concatenate(parts)


def train_converter(
    old: np.ndarray, new: np.ndarray, settings: Settings = Settings()
) -> tuple[Converter, np.ndarray]:
    """Train a converter on vectors of the same items, without labels.

    New vectors are compared by direction. The local relation takes each item's partner from the
    whole training set, among its nearest neighbours in the new space; the global relation uses the
    batch.

    Args:
      old, new: (N, do), (N, dn).
      settings: see `Settings`.

    Returns the converter, and the three parts of the loss (prediction, global relation, local
    relation) without their factors, as means over every 100 steps, (steps / 100, 3).

    Raises UserError for unequal numbers of rows, NaN or infinity, or fewer than 3 pairs.

    Example: ``converter, _ = train_converter(old, new, Settings(steps=1000))``.
    """
    s = settings
    old, new = as_vectors("old", old), as_vectors("new", new)
    check_same_length("old", old, "new", new)
    if len(new) < 3:
        raise UserError(f"a converter needs at least 3 pairs; there are {len(new)}")
    target = unit_rows(new).astype(np.float32)
    _, near = knn(target, target, min(s.neighbours, len(target) - 1), exclude_self=True)
    key = jax.random.key(s.seed)
    params = _start(jax.random.fold_in(key, 0), old.shape[1], target.shape[1], s)
    state = optax.adam(s.learning_rate).init(params)
    data = tuple(jnp.asarray(a) for a in (old.astype(np.float32), target, near))
    history = []
    for first in range(0, s.steps, _CHUNK):
        steps = jnp.arange(first, min(first + _CHUNK, s.steps))
        params, state, parts = _run(params, state, data, steps, key, s)
        history.append(np.asarray(parts))
    layers = tuple((np.asarray(w), np.asarray(b)) for w, b in params)
    return Converter(layers), np.array(history).reshape(-1, 3)


def _start(key, dim_in: int, dim_out: int, s: Settings):
    sizes = [dim_in, *[round(s.width * dim_out)] * s.layers, dim_out]
    make = jax.nn.initializers.lecun_normal()
    return [
        (make(jax.random.fold_in(key, i), (a, b)), jnp.zeros(b))
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    ]


@functools.partial(jax.jit, static_argnames="s")
@jax.default_matmul_precision("highest")
def _run(params, state, data, steps, key, s: Settings):
    """Train some steps; the batch of each step depends only on its number."""
    optimizer = optax.adam(s.learning_rate)

    def step(carry, number):
        params, state = carry
        batch = _draw(jax.random.fold_in(key, 1 + number), data, s)
        (_, parts), slope = jax.value_and_grad(_loss, has_aux=True)(params, batch, s)
        change, state = optimizer.update(slope, state)
        return (optax.apply_updates(params, change), state), parts

    (params, state), parts = jax.lax.scan(step, (params, state), steps)
    return params, state, jnp.mean(parts, axis=0)


def _draw(key, data, s: Settings):
    """Draw samples and near partners; return old, new, and the partners' old, new, (B, …) each."""
    old, target, near = data
    which, partner = jax.random.split(key)
    rows = jax.random.randint(which, (min(s.batch_size, len(old)),), 0, len(old))
    other = near[rows, jax.random.randint(partner, rows.shape, 0, near.shape[1])]
    return old[rows], target[rows], old[other], target[other]


def _loss(params, batch, s: Settings):
    old, target, other_old, other_target = batch
    mapped = _forward(params, jnp.concatenate([old, other_old]))
    mapped, other_mapped = mapped[: len(old)], mapped[len(old) :]
    parts = embedding_converter(mapped, target, neighbours=1, squared=s.squared)
    local = relation_change(mapped, other_mapped, target, other_target, s.squared)
    means = jnp.stack(
        [jnp.mean(parts.prediction), jnp.mean(parts.global_relation), jnp.mean(local)]
    )
    return jnp.dot(jnp.asarray((1.0, s.global_weight, s.local_weight)), means), means


def _forward(params, x):
    for weight, bias in params[:-1]:
        x = jax.nn.selu(x @ weight + bias)
    weight, bias = params[-1]
    return unit(x @ weight + bias)
