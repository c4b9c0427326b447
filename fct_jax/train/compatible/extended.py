"""OCA and BT²: the first numbers of a larger new embedding span the old space."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fct_jax import losses
from fct_jax.errors import UserError
from fct_jax.losses.numerics import normalize
from fct_jax.models.linear import Linear
from fct_jax.train.compatible.method import BOTH, LARGER, Method, Served, Step, Terms


def oca(scope, step: Step, options):
    parts = losses.oca(step.base_logits, step.embedding, step.labels, step.old_means)
    known = jnp.any(step.old_means != 0, -1)[step.labels]
    found = {name: part.mean() for name, part in parts._asdict().items()}
    del found["classification"]  # the base loss
    return Terms(found, known.mean(), losses.OCA_WEIGHTS._asdict())


def turned(scope, step: Step, options, key):
    """Return OCA's input of the classifier: the embedding's direction after a learned rotation.

    The rotation starts as the identity. The published layer also has a bias, which is left out
    here: with it, the exported classifier, which is linear without bias, would differ from the
    trained one.
    """
    size = step.embedding.shape[-1]
    return normalize(step.embedding) @ _rotation(scope.param("turn", _zeros, (size, size))).T


def _same_model(name: str, kwargs: dict, old_dim: int, options):
    return name, kwargs


def _with_turn(variables, learned, options):
    """Return OCA's variables with a classifier that takes embeddings before the rotation."""
    params = variables["params"]
    kernel = _rotation(learned["turn"]).T @ params["classifier"]["kernel"]
    return {**variables, "params": {**params, "classifier": {"kernel": kernel}}}


def bt2(scope, step: Step, options):
    """Return BT²'s losses. The bases start as the identity; the published ones start at random."""
    dim_new, dim_old = step.teacher.shape[-1], step.old_embedding.shape[-1]
    branch = Linear(dim_old, name="branch")(nn.relu(step.embedding))
    bases = (
        _rotation(scope.param(f"{name}_turn", _zeros, (dim, dim)))
        for name, dim in (("new", dim_new), ("old", dim_old))
    )
    new, extra = step.embedding[:, :dim_new], _extra(dim_old, options)
    made = losses.bt2_embedding(new, branch, *bases, extra)
    parts = losses.bt2(
        step.base_logits,
        new,
        step.teacher,
        made.compatible,
        step.old_embedding,
        step.labels,
        step.old_means,
    )
    known = jnp.any(step.old_means != 0, -1)[step.labels]
    found = {name: part.mean() for name, part in parts._asdict().items()}
    del found["classification"]  # the base loss
    return Terms(found, known.mean(), losses.BT2_WEIGHTS._asdict())


def own_part(scope, step: Step, options, key):
    """Return BT²'s input of the classifier: the direction of the new model's own vector."""
    return normalize(step.embedding[:, : step.teacher.shape[-1]])


def _basis_change(name: str, kwargs: dict, old_dim: int, options):
    made = {"backbone": name, "options": kwargs, "num_classes": kwargs["num_classes"]}
    return "bt2", {**made, "old_dim": old_dim, "extra": _extra(old_dim, options)}


def _with_bases(variables, learned, options):
    """Return the variables of ``models.basis.BasisChange``, whose classifier takes all of φ.

    The trained one takes â, the direction of the new model's vector. This is linear in φ because
    the bases are orthogonal: ``z = [φ[:do] O_o, φ[do:]]`` (as rows) and ``â = z[k:] O_p / C``.
    """
    new, old = (_rotation(learned[f"{name}_turn"]) for name in ("new", "old"))
    kernel = variables["params"]["classifier"]["kernel"][: len(new)]
    of_z = jnp.pad(new @ kernel / losses.BT2_SCALE, ((_extra(len(old), options), 0), (0, 0)))
    of_all = jnp.concatenate([old @ of_z[: len(old)], of_z[len(old) :]])
    params = {
        "backbone": variables["params"],
        "branch": learned["branch"],
        "new_basis": new,
        "old_basis": old,
        "classifier": {"kernel": of_all},
    }
    return {"params": params, "batch_stats": {"backbone": variables["batch_stats"]}}


def _extra(dim_old: int, options) -> int:
    """Return k, how many numbers BT² adds to the new model's own."""
    extra = options.extra or max(dim_old // 4, 1)
    if extra > dim_old:
        raise UserError(
            f"config.compatibility.extra={extra} must be at most {dim_old}, the size of the old "
            "model's embedding"
        )
    return extra


def _rotation(free: jax.Array) -> jax.Array:
    return jax.scipy.linalg.expm(free - free.T)


def _zeros(key, shape):
    return jnp.zeros(shape, jnp.float32)


OCA = Method(
    oca,
    means=True,
    size=LARGER,
    old_first=True,
    classified=turned,
    base_weight=losses.OCA_WEIGHTS.classification,
    served=Served(_same_model, _with_turn),
)
BT2 = Method(
    bt2,
    embeddings=True,
    means=True,
    teacher=True,
    size=BOTH,
    old_first=True,
    classified=own_part,
    served=Served(_basis_change, _with_bases),
)
