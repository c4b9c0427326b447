"""Fits without a closed form of sums: networks, cells, the converter, the common space.

Each of them imports its modules when it is called.
"""

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime import threads
from fct_jax.upgrade.maps.functions import Common, Function, Linear, Local, Selu

PAIRS_PER_DIM = 3  # average number of pairs per dimension in a cell of the local map
_UNPAIRED = 60_000  # vectors of each side, as published
_MOST_CELLS = 64  # each cell holds a matrix
# Floating-point operations of a converter's training: about five minutes on two CPU cores.
_WORK = 3e13
_STEPS = (200, 50_000)  # fewest, and as published


def fit_cells(pairs) -> Function:
    """Fit a linear map for each cell of the old space, with soft gating.

    On 18,500 pairs of text (256 → 384) the held-out agreement@10 was 0.413 with soft gating, 0.403
    with hard gating, 0.409 by ridge and 0.391 by one rotation; on 2,063 pictures (128 → 128) it was
    0.434, 0.431, 0.443 and 0.424.
    """
    from fct_jax.upgrade.maps.local import fit_local

    cells = min(_MOST_CELLS, max(1, len(pairs) // (PAIRS_PER_DIM * pairs.old.dim)))
    old, new = np.asarray(pairs.old.vectors), np.asarray(pairs.new.vectors)
    with threads.single():
        return Local.of_cells(fit_local(old, new, cells=cells, gating="soft", seed=pairs.seed))


def fit_converter(pairs) -> Function:
    """Train Embedding-Converter's MLP and scale its results to the new vectors' mean length."""
    from fct_jax.upgrade.maps.converter import Settings, train_converter

    old, new = np.asarray(pairs.old.vectors), np.asarray(pairs.new.vectors)
    made = Settings(seed=pairs.seed)
    batch, width = pairs.training.batch_size or made.batch_size, made.width * new.shape[1]
    weights = old.shape[1] * width + (made.layers - 1) * width**2 + width * new.shape[1]
    # Each sample and its partner pass each weight three times, with a product and a sum.
    steps = int(np.clip(_WORK / (12 * batch * weights), *_STEPS))
    if pairs.training.epochs:
        steps = max(1, pairs.training.epochs * len(new) // batch)
    settings = Settings(seed=pairs.seed, batch_size=batch, steps=steps)
    converter, _ = train_converter(old, new, settings)
    length = np.linalg.norm(np.asarray(new, np.float64), axis=1).mean()
    return Selu(converter.layers, length)


def fit_common_space(pairs, kind: str = "strict") -> Function:
    """Train λ-orthogonality's common space, and return its forward map, turned back.

    The space is that of B(new), so that B⁻¹(F(old)) is in the new model's space, and is searched by
    plain new vectors as F(old) is by B(new): exactly where B is orthogonal (``kind`` "strict"),
    nearly where it is nearly so ("relaxed"). It keeps B for the ways "common" and
    "common_translated". Without its contrastive loss F would be the ridge map,
    so that the space in closed form is no method of its own.
    """
    from fct_jax.upgrade.maps.common_space_training import Settings, train_common_space

    settings = Settings(kind=kind, seed=pairs.seed)
    if pairs.training.epochs:
        settings = dataclasses.replace(settings, epochs=pairs.training.epochs)
    old, new = np.asarray(pairs.old.vectors), np.asarray(pairs.new.vectors)
    with threads.single():
        space, _ = train_common_space(old, new, pairs.labels, settings)
        back = np.linalg.inv(space.backward)
    bias = (space.forward_bias - space.backward_bias) @ back
    return Common(space.forward @ back, 1.0, bias, space.backward, space.backward_bias)


def fit_relaxed_space(pairs) -> Function:
    """Train the relaxed common space; see `fit_common_space`."""
    return fit_common_space(pairs, "relaxed")


def fit_fct(pairs) -> Function:
    """Train the network of FCT; see ``network.py``."""
    from fct_jax.upgrade.maps.network import fit_learned

    return fit_learned("fct", pairs)


def fit_fastfill(pairs) -> Function:
    """Train the network of FastFill; see ``network.py``."""
    from fct_jax.upgrade.maps.network import fit_learned

    return fit_learned("fastfill", pairs)


def fit_without_pairs(old, new, seed: int) -> tuple[Function, str]:
    """Find a rotation without pairs, and return it with scale and shift, and what is known of it.

    The scale makes the mapped vectors vary as much as the new ones. Raises UserError if the seeds
    do not agree.
    """
    from fct_jax.upgrade.maps.unpaired import fit_unpaired

    rng = np.random.default_rng(seed)
    old, new = (np.asarray(_some(side, rng), np.float32) for side in (old, new))
    with threads.single():
        found = fit_unpaired(old, new, seed=seed)
        if not found.agreed:
            raise UserError(f"no map was found without pairs: {found.text}")
        turned = (old - found.mean_old) @ found.weight
    scale = np.linalg.norm(new - found.mean_new) / np.linalg.norm(turned)
    scale *= np.sqrt(len(old) / len(new))
    shift = found.mean_new - scale * (found.mean_old @ found.weight)
    return Linear(found.weight, scale, shift), found.text


def _some(vectors, rng):
    """Return at most the published number of vectors."""
    if len(vectors) <= _UNPAIRED:
        return vectors
    return vectors[np.sort(rng.permutation(len(vectors))[:_UNPAIRED])]
