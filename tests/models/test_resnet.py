"""Backbones against the golden arrays, their shapes, and their options."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rule_weights import rule_weights

from fct_jax.errors import UserError
from fct_jax.models import MODELS, RESNETS, ResNet, build, torch_import

GOLDEN = {"resnet_ResNet18": "resnet18", "resnet_ResNet50": "resnet50"}
GOLDEN["resnet_ResNet50_linear"] = "resnet50"

# Tolerances relative to an array's largest magnitude. In train mode at 64 px the last stage of
# ResNet-50 normalises 8 values a channel, which amplifies rounding.
EVAL, TRAIN18, TRAIN50 = 1e-4, 1e-4, 2e-3


@functools.cache
def compiled(model, train):
    if train:
        return jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    return jax.jit(model.apply)


SLOW = pytest.mark.slow(minutes=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("file", [pytest.param(f, marks=SLOW if "50" in f else ()) for f in GOLDEN])
def test_golden(file, golden_fct):
    info, arrays = golden_fct.json(file), golden_fct.arrays(file)
    state = rule_weights(info["state_dict"])
    for name, check in info["weight_checks"].items():
        np.testing.assert_array_equal(state[name].ravel()[:4], np.float32(check["first4"]))
    variables = torch_import.resnet(state)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == info["num_parameters"]

    model = build(GOLDEN[file], **info["kwargs"])
    random = np.random.RandomState(info["input224_seed"])
    large = random.standard_normal((2, 224, 224, 3)).astype(np.float32)
    ours = {"x": arrays["x"], "num_batches_tracked": np.int64(1)}
    for suffix, images in (("", arrays["x"]), ("_224", large)):
        for mode in ("eval", "train"):
            out = compiled(model, mode == "train")(variables, images)
            if mode == "train":
                out, updated = out
                if not suffix:
                    stats = updated["batch_stats"]
            ours[f"logits_{mode}{suffix}"], ours[f"emb_{mode}{suffix}"] = out

    last, last_bn = info["last_bn"].rsplit(".", 1)
    block = stats[last.replace(".", "_")]
    for name, layer in (
        ("bn1", stats["bn1"]),
        ("last", block[last_bn]),
        ("last_downsample", block["downsample_bn"]),
    ):
        ours[f"{name}_running_mean"], ours[f"{name}_running_var"] = layer["mean"], layer["var"]

    assert set(ours) == set(arrays)
    train = TRAIN18 if GOLDEN[file] == "resnet18" else TRAIN50
    for key, expected in arrays.items():
        exact = key.endswith("_eval") or "eval_224" in key
        limit = (EVAL if exact else train) * np.abs(expected).max()
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=limit, err_msg=key)


def shapes(name, **kwargs):
    """Return variables and outputs as shapes, without computing anything."""
    model = build(name, **kwargs)
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    return jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
    )


ARCHITECTURES = {"ResNet101_keyword_fixed": "resnet101", "ResNet50_embedding_dim_none": "resnet50"}


def test_names_of_all_architectures(golden_fct):
    lists = golden_fct.json("resnet_names")
    assert set(lists) <= {*ARCHITECTURES, "WideResNet101_2"}
    for key, names in lists.items():
        names = {name: tuple(shape) for name, shape in names}
        classes, dim = names["fc.weight"][:2]
        dim = None if key.endswith("dim_none") else dim
        name = ARCHITECTURES.get(key, "wide_resnet101_2")
        _, variables = shapes(name, num_classes=classes, embedding_dim=dim)
        zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), variables)
        ours = torch_import.resnet_to_torch(zeros)
        assert {k: v.shape for k, v in ours.items()} == names
        assert list(ours) == list(names)


@pytest.mark.parametrize("name", ["wide_resnet50_2", "resnet18"])
def test_output_shapes(name):
    (logits, embedding), variables = shapes(name, num_classes=7, embedding_dim=24)
    assert logits.shape == (2, 7) and embedding.shape == (2, 24)
    assert variables["params"]["classifier"]["kernel"].shape == (24, 7)


TWO_STAGES = ResNet, {**RESNETS["resnet18"], "depths": (1, 1)}


@pytest.fixture(autouse=True)
def two_stages(monkeypatch):
    """Make a ResNet of two blocks, which has all options of the others and compiles faster."""
    monkeypatch.setitem(MODELS, "two_stages", TWO_STAGES)


@functools.cache
def tiny_variables(**kwargs):
    model = build("two_stages", num_classes=5, embedding_dim=12, width=8, **kwargs)
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def tiny(small_stem=True, **kwargs):
    """Return a narrow network; the options in ``kwargs`` do not change its variables."""
    model = build(
        "two_stages", num_classes=5, embedding_dim=12, width=8, small_stem=small_stem, **kwargs
    )
    return model, tiny_variables(small_stem=small_stem)


def random_images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_small_stem_keeps_resolution():
    model = build("resnet18", num_classes=5, embedding_dim=12, width=8, small_stem=True)
    for size in (8, 32):
        x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
        _, state = jax.eval_shape(
            lambda x: model.init_with_output(
                jax.random.key(0), x, capture_intermediates=True, mutable=True
            ),
            x,
        )
        maps = state["intermediates"]
        assert maps["conv1"]["__call__"][0].shape == (2, size, size, 8)
        assert maps["layer4_1"]["__call__"][0].shape == (2, size // 8, size // 8, 12)
    assert state["params"]["conv1"]["kernel"].shape == (3, 3, 3, 8)


def test_embedding_options():
    x = random_images(4, 16, 16, 3)
    model, variables = tiny(last_nonlin=False)
    logits, raw = compiled(model, False)(variables, x)
    assert raw.min() < 0
    np.testing.assert_allclose(logits, raw @ variables["params"]["classifier"]["kernel"], atol=1e-5)
    unit_model, _ = tiny(last_nonlin=False, normalize_embedding=True)
    logits, unit = compiled(unit_model, False)(variables, x)
    np.testing.assert_allclose(unit, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(
        logits, unit @ variables["params"]["classifier"]["kernel"], atol=1e-5
    )
    positive, _ = tiny()
    assert compiled(positive, False)(variables, x)[1].min() >= 0


@pytest.mark.slow
def test_one_image_and_odd_sizes():
    model, variables = tiny()
    x = random_images(3, 9, 13, 3)
    _, batch = compiled(model, False)(variables, x)
    _, one = compiled(model, False)(variables, x[:1])
    np.testing.assert_allclose(one, batch[:1], atol=1e-5)

    def loss(params):
        (logits, embedding), updated = model.apply(
            {**variables, "params": params}, x[:1], train=True, mutable=["batch_stats"]
        )
        return logits.sum() + embedding.sum(), updated

    gradients, updated = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for leaf in jax.tree.leaves((gradients, updated)):
        assert np.isfinite(leaf).all()


def test_train_without_mutable_statistics():
    model, variables = tiny()
    x = random_images(4, 16, 16, 3)
    frozen = jax.jit(lambda v, x: model.apply(v, x, train=True))(variables, x)
    updating, _ = compiled(model, True)(variables, x)
    np.testing.assert_allclose(frozen[1], updating[1], atol=1e-6)


@pytest.mark.slow
def test_bfloat16_is_close():
    x = random_images(4, 16, 16, 3)
    model, variables = tiny()
    half, _ = tiny(dtype="bfloat16")
    types = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(types)} == {jnp.dtype("float32")}
    for train in (False, True):
        expected = compiled(model, train)(variables, x)
        out = compiled(half, train)(variables, x)
        if train:
            (expected, _), (out, _) = expected, out
        for a, b in zip(out, expected, strict=True):
            assert a.dtype == jnp.float32
            assert np.abs(a - b).max() < 0.1 * np.abs(b).max()
            assert np.abs(a - b).max() > 0


def test_initialisation_is_that_of_torch():
    _, variables = tiny()
    params = variables["params"]
    for kernel in (params["layer1_0"]["conv2"]["kernel"], params["classifier"]["kernel"]):
        bound = np.prod(kernel.shape[:-1]) ** -0.5
        assert np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.2)
    assert (params["layer2_0"]["bn2"]["scale"] == 1).all()
    assert (params["layer2_0"]["bn2"]["bias"] == 0).all()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("resnt18", {"num_classes": 3}, "did you mean 'resnet18'"),
        ("resnet18", {"num_clases": 3}, "did you mean 'num_classes'"),
        ("resnet18", {"num_classes": 3, "depths": (1,)}, "depths"),
        ("resnet18", {}, "needs num_classes"),
        ("resnet18", {"num_classes": 0}, "positive integer"),
        ("resnet18", {"num_classes": None}, "positive integer"),
        ("resnet18", {"num_classes": 2.5}, "positive integer"),
        ("resnet18", {"num_classes": 3, "dtype": "bf16"}, "dtype"),
        ("fct", {"embedding_dim": 3, "inner": 4}, "did you mean 'inner_dim'"),
        ("fct", {}, "needs embedding_dim"),
        ("fastfill", {"embedding_dim": 3, "uncertainty_dim": 3}, "uncertainty_dim"),
    ],
)
def test_bad_options(name, kwargs, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "bt2"])  # wraps another
def test_every_name_builds_a_model_of_the_dimensions_asked_for(name):
    rows = jax.ShapeDtypeStruct((2, 8), jnp.float32)
    if "resnet" in name:
        (logits, embedding), _ = shapes(name, num_classes=np.int64(3), embedding_dim=8)
        assert (logits.shape, embedding.shape) == ((2, 3), (2, 8))
        return
    model = build(name, **({"blocks": 1} if name == "lce" else {"embedding_dim": 5}))
    (embedding, log_variance), _ = jax.eval_shape(
        lambda old: model.init_with_output(jax.random.key(0), old, old), rows
    )
    # LCE's transformation adds to the old embedding and so keeps its size.
    assert embedding.shape == ((2, 8) if name == "lce" else (2, 5))
    assert (log_variance is not None) == (name == "fastfill")
    assert log_variance is None or log_variance.shape == (2,)
