"""Memory savings do not change the training: accumulation, rematerialisation, bfloat16."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fct_jax import models
from fct_jax.models.batch_norm import BatchNorm
from fct_jax.models.linear import Linear
from fct_jax.models.resnet import BasicBlock, Bottleneck, ResNet
from fct_jax.runtime import sharding
from fct_jax.train.accumulate import MicroBatches
from fct_jax.train.loop import TASKS
from fct_jax.train.state import State
from fct_jax.train.steps import compile_steps, compiler_options
from tools import check_devices

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 5)).astype(np.float32)
Y = RNG.standard_normal((24, 3)).astype(np.float32)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(BatchNorm(name="bn")(Linear(7, name="a")(x), not train))
        return Linear(3, name="b")(x)


class Task:
    """A regression of Y on X with a BatchNorm and some noise."""

    frozen = ()

    def __init__(self, noise=0.0):
        self.feed = SimpleNamespace(pick=lambda data, rows, key: {"x": data[0][rows], "rows": rows})
        self._noise = noise

    def loss(self, variables, frozen, batch, step, key, freeze):
        x = batch["x"] + self._noise * jax.random.normal(key, batch["x"].shape)
        if freeze:
            y, stats = Net().apply(variables, x, False), variables["batch_stats"]
        else:
            y, new = Net().apply(variables, x, True, mutable=["batch_stats"])
            stats = new["batch_stats"]
        loss = jnp.mean(jnp.square(y - jnp.asarray(Y)[batch["rows"]]))
        return loss, (stats, {"twice": 2 * loss})


OPTIMIZER = optax.sgd(0.1, momentum=0.9)


initial = jax.jit(functools.partial(Net().init, train=False))


def start():
    variables = initial(jax.random.key(0), X)
    params = variables["params"]
    return State(jnp.int32(0), params, variables["batch_stats"], OPTIMIZER.init(params))


def after(steps, room, freeze, task=None, **kwargs):
    """Return (state, metric sums) after ``steps`` steps on all rows, ``room`` steps per call."""
    run, state = compile_steps(task or Task(), OPTIMIZER, 0, **kwargs), start()
    total = {}
    for _ in range(steps // room):
        call = jnp.tile(jnp.arange(24), (room, 1))
        state, sums = run(state, (X,), (), call, room, freeze=freeze)
        total = {name: total.get(name, 0) + value for name, value in sums.items()}
    return jax.device_get((state, total))


def assert_close(found, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), found, expected)


@functools.cache
def without_statistics(room):
    return after(4, room, freeze=True)


@pytest.mark.slow
@pytest.mark.parametrize("room", [1, 4])  # a program per micro-batch, or a loop over them
@pytest.mark.parametrize("count", [2, 3, 24])
def test_accumulated_is_the_whole_batch_without_batch_statistics(count, room):
    expected = without_statistics(room)
    found = after(4, room, freeze=True, micro_batches=MicroBatches(count))
    assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("room", [1, 4])
@pytest.mark.parametrize("group", [1, 4])
def test_accumulated_is_the_mean_of_micro_batches(group, room):
    """Compare with plain loops, in which statistics carry over between micro-batches."""
    micro = MicroBatches(3, group)
    found, sums = after(4, room, freeze=False, micro_batches=micro)
    task, state, losses = Task(), start(), []

    @jax.jit
    def gradient_of(params, batch_stats, x, rows):
        def loss(params):
            variables = {"params": params, "batch_stats": batch_stats}
            return task.loss(variables, (), {"x": x, "rows": rows}, 0, jax.random.key(0), False)

        return jax.value_and_grad(loss, has_aux=True)(params)

    for _ in range(4):
        gradients, batch_stats = [], state.batch_stats
        for i in range(3):
            rows = np.concatenate(np.split(np.arange(24), 24 // group)[i::3])
            (value, (batch_stats, _)), gradient = gradient_of(
                state.params, batch_stats, X[rows], rows
            )
            gradients.append(gradient)
            losses.append(value)
        mean = jax.tree.map(lambda *g: sum(g) / 3, *gradients)
        updates, opt_state = OPTIMIZER.update(mean, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        state = State(state.step + 1, params, batch_stats, opt_state)
    assert_close(found, jax.device_get(state))
    assert_close(sums, {"loss": sum(losses) / 3, "twice": 2 * sum(losses) / 3})


@pytest.mark.slow
def test_micro_batches_draw_different_noise():
    """Noise differs both with one program per micro-batch and in a loop."""
    one = after(2, 1, freeze=True, task=Task(1.0), micro_batches=MicroBatches(2))
    two = after(2, 2, freeze=True, task=Task(1.0), micro_batches=MicroBatches(2))
    assert_close(one, two)
    whole = after(2, 1, freeze=True, task=Task(1.0))
    assert abs(whole[1]["loss"] - one[1]["loss"]) > 1e-3


def net(block, remat):
    expansion = 4 if block is Bottleneck else 1
    return ResNet(
        block, (2, 1), expansion, 5, embedding_dim=8, small_stem=True, width=8, remat=remat
    )


@pytest.mark.slow
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_rematerialised_resnet_is_the_same_and_keeps_less(block):
    images = RNG.standard_normal((16, 16, 16, 3)).astype(np.float32)
    plain, remat = net(block, False), net(block, True)
    variables = jax.jit(plain.init)(jax.random.key(0), images)
    shapes = jax.eval_shape(remat.init, jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda x: x.shape, shapes)

    def gradient(module):
        def loss(params):
            given = {**variables, "params": params}
            (logits, _), new = module.apply(given, images, train=True, mutable=["batch_stats"])
            return jnp.mean(jnp.square(logits)), new

        compiled = jax.jit(
            jax.value_and_grad(loss, has_aux=True), compiler_options=compiler_options(module.remat)
        )
        compiled = compiled.lower(variables["params"]).compile()
        return compiled(variables["params"]), compiled.memory_analysis().temp_size_in_bytes

    expected, bytes_plain = gradient(plain)
    found, bytes_remat = gradient(remat)
    assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert bytes_remat < 0.8 * bytes_plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fct", "fastfill"])
def test_rematerialised_transformation_is_the_same(name):
    kwargs = {"embedding_dim": 3, "inner_dim": 6}
    plain, remat = models.build(name, **kwargs), models.build(name, **kwargs, remat=True)
    variables = jax.jit(plain.init)(jax.random.key(0), X, X)
    other = jax.jit(remat.init)(jax.random.key(0), X, X)
    assert_close(other, variables, 0, 0)

    def loss(module):
        def of(params):
            out, _ = module.apply(
                {**variables, "params": params}, X, X, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.square(out[0] - Y))

        return jax.jit(jax.value_and_grad(of))(variables["params"])

    assert_close(loss(remat), loss(plain))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    check_devices.prepare(folder)
    return folder


def config_of(runs, name, **changes):
    config = check_devices.cases(runs)[name]
    config.update(changes)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["backbone", "fastfill", "advbct"])
def test_bfloat16_trains_like_float32(runs, name):
    losses, arrays = check_devices.trained(config_of(runs, name), 1, 8)
    lower, halved = check_devices.trained(config_of(runs, name, compute_dtype="bfloat16"), 1, 8)
    assert lower != losses
    np.testing.assert_allclose(lower, losses, rtol=0.02)
    for key, array in arrays.items():
        assert halved[key].dtype == np.float32, key
        scale = max(np.abs(array).max(), 0.1)
        np.testing.assert_allclose(halved[key], array, atol=0.05 * scale, err_msg=key)


@pytest.mark.slow
def test_bfloat16_leaves_parameters_gradients_and_losses_float32(runs):
    """This holds for every task and method, judged by types alone."""
    mesh = sharding.make_mesh()
    for name in check_devices.cases(runs):
        config = config_of(runs, name, compute_dtype="bfloat16")
        task = TASKS[config.task](config, mesh)
        variables = jax.eval_shape(task.init, jax.random.key(0))
        _, call = next(iter(task.feed.calls(0)))
        element = jax.tree.map(lambda array: array[0], call)

        def gradient(params, variables=variables, element=element, task=task):
            def loss(params):
                batch = task.feed.pick(task.feed.data, element, jax.random.key(0))
                given = {**variables, "params": params}
                return task.loss(given, task.frozen, batch, 0, jax.random.key(0), False)

            return jax.value_and_grad(loss, has_aux=True)(params)

        # Statistics must be arrays, not shapes, since a closure holds them.
        variables["batch_stats"] = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype), variables.get("batch_stats", {})
        )
        found = jax.eval_shape(gradient, variables["params"])
        for path, array in jax.tree_util.tree_leaves_with_path((variables, found)):
            where = name, jax.tree_util.keystr(path)
            assert array.dtype in (jnp.float32, jnp.int32, jnp.bool_), where
