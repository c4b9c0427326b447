"""Backbones with a projection: the head against the golden arrays, weights from elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from rule_weights import rule_weights

from fct_jax.errors import UserError
from fct_jax.models import build, torch_import
from fct_jax.models.projection import ProjectionHead


def close(ours, expected, name):
    limit = 1e-4 * np.abs(expected).max() + 2e-6
    np.testing.assert_allclose(ours, expected, rtol=0, atol=limit, err_msg=name)


def test_golden_head(golden_advbct):
    arrays = {
        k.removeprefix("head/"): v
        for k, v in golden_advbct.arrays("adversarial").items()
        if k.startswith("head/")
    }
    take = arrays.pop
    variables = {
        "params": {
            "projection": {"kernel": take("proj_weight").T},
            "projection_bn": {"scale": take("bn_weight"), "bias": take("bn_bias")},
            "classifier": {"kernel": take("cls_weight").T},
        },
        "batch_stats": {
            "projection_bn": {"mean": take("bn_running_mean"), "var": take("bn_running_var")}
        },
    }
    features = take("backbone_out")
    dim, classes = variables["params"]["classifier"]["kernel"].shape
    head = ProjectionHead(classes, dim)
    ours = {}
    ours["feature_eval"] = head.apply(variables, features, False)[1]
    out, updated = head.apply(variables, features, True, mutable=["batch_stats"])
    ours["cls_train"], ours["feature_train"] = out
    after = updated["batch_stats"]["projection_bn"]
    ours["bn_running_mean_after"], ours["bn_running_var_after"] = after["mean"], after["var"]
    assert set(ours) == set(arrays)
    for name, expected in arrays.items():
        close(ours[name], expected, name)


def model_and_variables():
    model = build("resnet18_projection", num_classes=5, embedding_dim=12, width=8)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.slow
def test_interface_and_round_trip():
    model, variables = model_and_variables()
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    apply = jax.jit(model.apply)
    logits, embedding = apply(variables, x)
    assert logits.shape == (3, 5) and embedding.shape == (3, 12)
    assert logits.dtype == embedding.dtype == jnp.float32
    kernel = variables["params"]["classifier"]["kernel"]
    np.testing.assert_allclose(logits, embedding @ kernel, atol=1e-5)
    assert "downsample_conv" not in variables["params"]["layer4_1"]

    state = torch_import.compatible_to_torch(variables)
    extra = {"discriminator.d_fc1.weight": np.zeros((3, 3)), "eboundary.w": np.zeros(3)}
    again = torch_import.compatible({**state, **extra})
    np.testing.assert_array_equal(apply(again, x)[0], logits)
    with pytest.raises(UserError, match=r"missing projection_cls\.weight"):
        torch_import.compatible({k: v for k, v in state.items() if "cls" not in k})


@pytest.mark.parametrize(
    ("name", "features"),
    [("resnet18_projection", 512), ("resnet50_projection", 2048), ("resnet101_projection", 2048)],
)
def test_default_shapes(name, features):
    model = build(name, num_classes=7)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert variables["params"]["projection"]["kernel"].shape == (features, 256)
    assert variables["params"]["classifier"]["kernel"].shape == (256, 7)
    assert set(variables["params"]["projection"]) == {"kernel"}


def test_trunk_from_torchvision_names(golden_fct):
    """The weights of a full-width ResNet-50 with torchvision's classifier are loaded."""
    names = dict(golden_fct.json("resnet_names")["ResNet50_embedding_dim_none"])
    names["fc.weight"], names["fc.bias"] = [1000, 2048], [1000]
    trunk = torch_import.torchvision_resnet(rule_weights(list(names.items())))
    model = build("resnet50_projection", num_classes=3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    for collection, head in (
        ("params", {"projection", "projection_bn", "classifier"}),
        ("batch_stats", {"projection_bn"}),
    ):
        expected = {k: v for k, v in shapes[collection].items() if k not in head}
        assert jax.tree.map(np.shape, trunk[collection]) == jax.tree.map(np.shape, expected)


@pytest.mark.slow
def test_one_image_trains():
    model = build(tiny_runs.PROJECTION, num_classes=5, embedding_dim=12, width=8)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

    def loss(params):
        (logits, _), updated = model.apply(
            {**variables, "params": params},
            jnp.ones((1, 17, 9, 3)),
            train=True,
            mutable=["batch_stats"],
        )
        return logits.sum(), updated

    gradients, updated = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for leaf in jax.tree.leaves((gradients, updated)):
        assert np.isfinite(leaf).all()
