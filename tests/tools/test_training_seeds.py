"""Compatible training against PyTorch, from the same weights and batches."""

import jax
import numpy as np
import pytest
import tiny_runs  # noqa: F401 - puts the repository on the path
from double import double_precision, widened

from fct_jax import data
from fct_jax.models import RESNETS, build, torch_import, torch_names
from fct_jax.runtime import sharding
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.train.compatible.task import Compatible
from fct_jax.train.optimizer import build_optimizer
from fct_jax.train.state import State
from fct_jax.train.steps import compile_steps

torch = pytest.importorskip("torch", reason="training is compared with PyTorch's")

from tools import training_seeds  # noqa: E402 - needs PyTorch


@pytest.mark.slow(minutes=0.8)
@pytest.mark.parametrize(
    ("method", "epochs", "limit"), [("none", 1, 1e-9), ("hot_refresh", 1, 1e-5)]
)
def test_training_ends_where_pytorch_does(method, epochs, limit, tmp_path, monkeypatch):
    """The weights agree with PyTorch's in float64, where rounding has no room to grow.

    With Hot-refresh's softmax at a temperature of 0.01, rounding grows by a factor of up to a
    thousand per step: in float32 the weights differ by 1e-2 of their size after two steps. In
    float64, 1e-16 becomes 1e-8 after an epoch of 15 steps; a model trained alone stays at 6e-14.
    """
    # One block of the two in every stage has all their parts.
    monkeypatch.setitem(RESNETS["resnet18"], "depths", (1, 1, 1, 1))
    monkeypatch.setattr(torch_names, "BASIC_DEPTHS", [(1, 1, 1, 1)])
    arguments = training_seeds.parser().parse_args(["--epochs", str(epochs)])
    config = training_seeds.settings(arguments, method=method, seed=3, old=str(tmp_path / "old"))
    source = data.open_source(config.data, "train")
    old = np.random.default_rng(0).normal(size=(len(source), 32)).astype(np.float32)
    old += 3 * np.eye(10, 32, dtype=np.float32)[source.labels]
    EmbeddingSet.of(old, source.ids, source.labels).write(tmp_path / "old")
    weights, batches = training_seeds.start_of(config)
    variables = widened(torch_import.compatible(weights))
    assert len(batches) == 15 * epochs
    config.compute_dtype = "float64"

    with double_precision():
        mesh = sharding.make_mesh()
        task = Compatible(config, mesh)
        optimizer = build_optimizer(config.optimizer, config.epochs, task.feed.steps_per_epoch)
        params = {"model": variables["params"], "method": {}, "metric": {}}
        stats = {"model": variables["batch_stats"], "method": {}, "metric": {}}
        state = State(np.int32(0), params, stats, optimizer.init(params))
        steps = compile_steps(task, optimizer, config.seed)
        frozen = widened(task.frozen)
        for epoch in range(config.epochs):
            for count, call in task.feed.calls(epoch * task.feed.steps_per_epoch):
                state, _ = steps(state, task.feed.data, frozen, call, count, freeze=False)
        images, labels = training_seeds.images_of(config, "train")
        test_images = training_seeds.images_of(config, "validation")[0][:200]
        assert images.dtype == np.float64
        described = task.describe()
        model = build(described["name"], **described["kwargs"], dtype="float64")
        apply = jax.jit(lambda v, x: model.apply(v, x)[1])
        before = np.asarray(apply(variables, test_images))
        ours = np.asarray(apply(task.export(state.variables), test_images))
    # This is outside the float64 context, in which random weights would differ.
    config.compute_dtype = "float32"
    start = training_seeds.HERE
    theirs = training_seeds.torch_run(config, old, 3, start, images, labels, test_images)
    size = np.abs(theirs).max()
    assert theirs.dtype == np.float64 and np.abs(before - theirs).max() > 0.1 * size
    np.testing.assert_allclose(ours, theirs, atol=limit * size, rtol=0)
