"""Every compatibility loss on person re-identification, beside triplet and centre loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_runs
from tiny_identities import write_market1501

from fct_jax import losses, models
from fct_jax.errors import UserError
from fct_jax.runtime import sharding
from fct_jax.train.compatible.methods import METHODS
from fct_jax.train.compatible.task import Compatible
from fct_jax.train.image_batches import preprocessing_of
from fct_jax.train.loop import train

pytestmark = pytest.mark.usefixtures("flat_model")


def config(folder, **changes):
    """Return Market-1501's config with batches of 4 persons × 2 images and smaller images."""
    made = tiny_runs.recipes.market1501_compatible()
    made.data.dir, made.data.workers, made.pretrained = str(folder), 0, ""
    made.model.name, made.model.embedding_dim, made.method = "flat", 8, "none"
    made.preprocessing.size, made.preprocessing.width = 16, 8
    made.batch_size, made.epochs, made.sampler.images = 8, 1, 2
    made.optimizer.schedule.warmup_epochs = 0
    made.reid.triplet_soft = True  # never quite 0
    made.reid.pad, made.reid.erase, made.reid.neck = 0, 0.0, False
    return tiny_runs.changed(made, changes)


@pytest.fixture(scope="module")
def market(tmp_path_factory, flat_model):
    """Return (folder, old run); the old run knows four of the eight persons."""
    root = tmp_path_factory.mktemp("market")
    write_market1501(root)
    train(config(root, data__subset="old classes 0.5", seed=5), root / "runs" / "old")
    return root, str(root / "runs" / "old")


def one_step(task, seed=0):
    """Return (loss, metrics, gradients, labels) of the first batch."""
    variables = jax.jit(task.init)(jax.random.key(seed))
    _, call = next(iter(task.feed.calls(0)))
    element = jax.tree.map(lambda array: array[0], call)
    batch = task.feed.pick(task.feed.data, element, jax.random.key(1))

    def objective(params):
        given = {**variables, "params": params}
        return task.loss(given, task.frozen, batch, 3, jax.random.key(2), False)

    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, (_, metrics)), gradients = step(variables["params"])
    return float(loss), metrics, gradients, np.asarray(batch["label"])


@pytest.fixture(scope="module")
def alone(market):
    """Return the gradient of the new model's projection without a method."""
    task = Compatible(config(market[0], data__subset="new classes 0.5"), sharding.make_mesh())
    return one_step(task)[2]["model"]["projection"]["kernel"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.old_first])
def test_every_method_beside_triplet_and_centre(method, market, alone):
    folder, old = market
    new = {"data__subset": "new classes 0.5", "method": method, "old": old}
    task = Compatible(config(folder, **new), sharding.make_mesh())
    loss, metrics, gradients, labels = one_step(task)
    assert len(set(labels.tolist())) == 4 and labels.max() >= 4  # new persons take part
    known = {"base", "share", "accuracy", "batch_hard", "center"}
    own = set(metrics) - known
    assert known <= set(metrics) and bool(own) == (method not in ("none", "mixbct"))
    parts = own | {"base", "batch_hard", "center"}
    weights = {"adversarial": 2.0}  # in the only epoch
    expected = sum(weights.get(name, 1.0) * float(metrics[name]) for name in parts)
    assert loss == pytest.approx(expected, rel=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    # The centres follow their own loss, whatever its weight; the model follows all losses.
    assert np.abs(gradients["metric"]["centers"]).max() > 0
    gradient = gradients["model"]["projection"]["kernel"]
    assert np.allclose(gradient, alone, atol=1e-7) == (method == "none")


@pytest.mark.slow
def test_neck(market):
    """Triplet and centre loss take the input of the embedding's BatchNorm."""
    found = {}
    for neck in (True, False):
        task = Compatible(config(market[0], reid__neck=neck), sharding.make_mesh())
        found[neck] = one_step(task)[1]
    assert found[True]["base"] == pytest.approx(float(found[False]["base"]), rel=1e-5)
    assert not np.allclose(found[True]["batch_hard"], found[False]["batch_hard"])
    # Compute it by hand: the projection of the pixels, before the BatchNorm.
    settings = config(market[0], reid__neck=True)
    task = Compatible(settings, sharding.make_mesh())
    params = jax.jit(task.init)(jax.random.key(0))["params"]
    _, call = next(iter(task.feed.calls(0)))
    element = jax.tree.map(lambda array: array[0], call)
    batch = task.feed.pick(task.feed.data, element, jax.random.key(1))
    pixels = preprocessing_of(settings.preprocessing).on_device(batch["image"], batch["flip"])
    projected = pixels.reshape(8, -1) @ params["model"]["projection"]["kernel"]
    expected = losses.batch_hard_triplet(projected, batch["label"], None)
    np.testing.assert_allclose(found[True]["batch_hard"], expected, rtol=1e-3)


def test_augmented_images(market):
    """Images are moved and erased, by key, and otherwise the same; switched off, they stay."""
    images = jnp.ones((8, 16, 8, 3))
    settings = config(market[0], reid__pad=3, reid__erase=0.5)
    task = Compatible(settings, sharding.make_mesh())
    first, again, other = (
        np.asarray(task.augmented(images, jax.random.key(seed))) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert first.shape == images.shape and (first != other).any()
    black = -np.array(settings.preprocessing.mean) / settings.preprocessing.std
    np.testing.assert_allclose(np.unique(first[..., 0]), [black[0], 0.0, 1.0], rtol=1e-5)
    plain = Compatible(config(market[0]), sharding.make_mesh())
    assert plain.augmented(images, jax.random.key(0)) is images


def test_last_stride():
    """The last stage keeps the size of the stage before it; the weights are the same."""
    x, sizes, shapes = jnp.zeros((1, 64, 32, 3)), {}, {}
    for stride in (1, 2):
        model = models.build("resnet18_projection", num_classes=3, width=4, last_stride=stride)
        _, state = jax.eval_shape(
            lambda model=model: model.init_with_output(
                jax.random.key(0), x, capture_intermediates=True
            )
        )
        sizes[stride] = state["intermediates"]["layer4_1"]["__call__"][0].shape[1:3]
        shapes[stride] = jax.tree.map(jnp.shape, state["params"])
    assert sizes == {1: (4, 2), 2: (2, 1)} and shapes[1] == shapes[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reid__pad": -1}, "config.reid.pad must be 0 or more pixels, not -1"),
        ({"reid__erase": 1.5}, r"config.reid.erase is a probability in \[0, 1\], not 1.5"),
        (
            {"reid__neck": True, "model__name": "resnet50"},
            "reid.neck needs a projection .* config.model.name=resnet50_projection",
        ),
        ({"model__name": "resnet18_projection", "model__last_stride": 0}, "positive integer"),
    ],
)
def test_mistakes(changes, message, market):
    with pytest.raises(UserError, match=message):
        Compatible(config(market[0], **changes), sharding.make_mesh())


@pytest.mark.slow
@pytest.mark.parametrize("kind", losses.HEADS)
@pytest.mark.parametrize("label", [-1, 4, 2**31 - 1])
def test_unknown_labels_get_no_margin_in_any_head(kind, label):
    """A label outside the classes gives logits without margin, and a NaN cross-entropy."""
    rng = np.random.default_rng(0)
    embedding, classifier = rng.normal(size=(3, 5)), rng.normal(size=(4, 5))
    scale, margin = 16.0, 0.25
    labels = np.array([1, label, 2])
    found = losses.base_logits(kind, embedding, classifier, labels, scale, margin)
    cosine = np.asarray(losses.cosine_logits(embedding, classifier))
    expected = {
        "softmax": embedding @ classifier.T,
        "circle": scale * np.maximum(cosine + margin, 0) * (cosine - margin),
    }.get(kind, scale * cosine)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-5)
    # The other rows are as if that one were not there.
    alone = losses.base_logits(kind, embedding[::2], classifier, labels[::2], scale, margin)
    np.testing.assert_allclose(found[::2], alone, rtol=1e-5, atol=1e-5)
    if kind != "softmax":
        assert not np.allclose(found[0, 1], expected[0, 1])
    values = losses.cross_entropy(found, jnp.asarray(labels))
    assert np.isnan(values[1]) and np.isfinite(values[::2]).all()
