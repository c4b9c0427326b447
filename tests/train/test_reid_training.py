"""Person re-identification and faces: from files in their released formats to the one report."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_runs
from ml_collections import ConfigDict, FrozenConfigDict
from tiny_identities import picture, write_ijbc, write_market1501, write_ms1m

from fct_jax import config as configs
from fct_jax import data, load_model, losses, recipes
from fct_jax.compare.models import judge
from fct_jax.compare.report import ALONE, described, report_of
from fct_jax.compare.test_sets import open_test
from fct_jax.data.ijb import protocol_beside, read_media, rows_of
from fct_jax.data.market1501 import parse_names
from fct_jax.embed.command import embed
from fct_jax.errors import UserError
from fct_jax.evaluate.protocols.reid import k_reciprocal_rerank, market1501
from fct_jax.evaluate.protocols.verification import identification, pool_templates, tar_at_far
from fct_jax.losses.reid import arcface_monotonic, circle
from fct_jax.runtime import sharding
from fct_jax.train.compatible.metric_losses import MetricLosses
from fct_jax.train.compatible.task import Compatible
from fct_jax.train.loop import train
from fct_jax.train.optimizer import build_optimizer, learning_rate

pytestmark = pytest.mark.usefixtures("flat_model")

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("identities")
    write_market1501(root / "market1501")
    write_ms1m(root / "ms1m")
    write_ijbc(root / "ijbc")
    return root


def market_config(folders, **changes):
    """Return a config of one epoch of batches of 4 persons × 2 images."""
    config = tiny(recipes.market1501_compatible(), folders / "market1501")
    config.preprocessing.size, config.preprocessing.width = 32, 16
    config.sampler.images = 2
    config.reid.pad, config.reid.erase = 1, 0.0  # erasing would leave little of a small image
    return tiny_runs.changed(config, changes)


def face_config(folders, **changes):
    config = tiny(recipes.ms1m_compatible(), folders / "ms1m")
    config.preprocessing.size = 16
    return tiny_runs.changed(config, changes)


def tiny(config, folder):
    config.data.dir, config.data.workers, config.pretrained = str(folder), 0, ""
    config.model.name, config.model.embedding_dim, config.method = "flat", 8, "none"
    config.batch_size, config.epochs = 8, 1
    config.optimizer.lr = 1e-2
    config.optimizer.schedule.warmup_epochs = 0
    return config


def trained(config, run):
    train(config, run)
    return str(run)


@pytest.fixture(scope="module")
def market_runs(folders, flat_model):
    """Train an old model, a new one alone and two methods, the last with a residual network."""
    old = trained(
        market_config(folders, data__subset="old classes 0.5", seed=5), folders / "runs" / "old"
    )
    new = {"data__subset": "new classes 0.5", "old": old}
    runs = {}
    for name, changes in {
        ALONE: {"epochs": 3},
        "advbct": {"method": "advbct", "base_loss": "circle", "scale": 64.0, "margin": 0.25},
        "bct": {
            "method": "bct",
            "model__name": tiny_runs.PROJECTION,
            "model__width": 4,
            "model__small_stem": True,
            "data__in_memory": "no",
        },
    }.items():
        runs[name] = trained(market_config(folders, **new, **changes), folders / "runs" / name)
    return old, runs


def models(runs: dict) -> dict:
    return {name: run for name, run in runs.items() if name != ALONE}


@pytest.mark.slow
def test_market1501_from_files_to_report(folders, market_runs):
    old, runs = market_runs
    tests = {}
    for name, rerank in (("plain", False), ("re-ranked", True)):
        test = open_test(market_config(folders, reid__rerank=rerank))
        tests[name] = judge(test, old, runs[ALONE], models(runs), folders / "galleries")
    report = report_of("Market-1501", tests)
    assert "| cmc@1 | cmc@5 | cmc@10 |" in report.markdown()
    described([report]).show()

    # The embed command and the protocol on its own give the same numbers.
    sets = {}
    for who, run in (("old", old), ("advbct", runs["advbct"])):
        for split in ("query", "gallery"):
            config = configs.embed()
            config.model, config.split = run, split
            sets[who, split] = embed(config, folders / f"{who}-{split}")
    query, gallery = sets["advbct", "query"], sets["old", "gallery"]
    ids = [parse_names(found.ids) for found in (query, gallery)]
    assert (ids[1][0] == 0).sum() == 3 and -1 not in ids[1][0]
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query.vectors, gallery.vectors)]
    plain = np.square(unit[0][:, None] - unit[1]).sum(-1)
    for name, distances in (("plain", plain), ("re-ranked", k_reciprocal_rerank(*unit))):
        expected = market1501(distances, ids[0][0], ids[1][0], ids[0][1], ids[1][1])
        found = tests[name]["advbct"]
        assert found["cross"] == pytest.approx(expected["map"], abs=1e-6)
        for k in (1, 5, 10):
            assert found[f"cross cmc@{k}"] == pytest.approx(expected["cmc"][k - 1])
    assert tests["plain"][ALONE]["self"] > 0.5  # three epochs suffice to learn the colours


@pytest.mark.slow
def test_faces_from_files_to_report(folders, flat_model):
    balanced = {"sampler__name": "balanced", "optimizer__lr": 0.1, "epochs": 3}
    old = trained(
        face_config(folders, **balanced, data__subset="old images 0.5"), folders / "runs/face-old"
    )
    new = {**balanced, "data__subset": "new images 0.5", "old": old, "seed": 1}
    runs = {
        ALONE: trained(face_config(folders, **new), folders / "runs/face-alone"),
        "unibct": trained(
            face_config(folders, **new, method="unibct", reid__triplet_weight=1.0),
            folders / "runs/face-unibct",
        ),
    }
    media_file = folders / "ijbc" / "ijbc_face_tid_mid.txt"
    ijb = {
        "data__name": "ijb",
        "data__dir": str(folders / "ijbc" / "images"),
        "data__list": str(media_file),
    }
    test = open_test(face_config(folders, **ijb))
    assert test.name == "ijbc"
    found = judge(test, old, runs[ALONE], models(runs), folders / "galleries")
    text = report_of("faces", {"IJB-C": found}).markdown()
    assert "| top@1 |" in text and "tar@far=0.0001" in text
    assert found[ALONE]["self"] > 0.5

    # Compute it by hand: each person has one probe and one gallery template.
    media = read_media(media_file)
    pairs, gallery, probe = protocol_beside(media_file)
    sides = []
    for run in (runs["unibct"], old):
        made = test.vectors(run, "gallery")
        vectors = np.asarray(made.vectors)[rows_of(media, made.ids)]
        sides.append(pool_templates(vectors, media.templates, media.media))
    (ids, asked), (_, searched) = sides
    row = {template: i for i, template in enumerate(ids.tolist())}
    picked = asked[[row[t] for t in probe.templates]], searched[[row[t] for t in gallery.templates]]
    expected = identification(picked[0], probe.subjects, picked[1], gallery.subjects)
    assert found["unibct"]["cross"] == pytest.approx(expected["map"])
    assert found["unibct"]["cross top@1"] == expected["top@1"]
    scores = [
        asked[row[a]] @ searched[row[b]] for a, b in zip(pairs.first, pairs.second, strict=True)
    ]
    for name, value in tar_at_far(scores, pairs.same).items():
        assert found["unibct"][f"cross {name}"] == value


def test_ijb_protocol_mistakes(folders, tmp_path):
    with pytest.raises(UserError, match="must be called NAME_face_tid_mid.txt"):
        protocol_beside(tmp_path / "media.txt")
    with pytest.raises(UserError, match=r"no file .*ijbb_1N_gallery_\*\.csv"):
        protocol_beside(tmp_path / "ijbb_face_tid_mid.txt")


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_batches_are_the_samplers(in_memory, folders, flat_model):
    task = Compatible(
        market_config(folders, data__in_memory=in_memory, preprocessing__flip=False),
        sharding.make_mesh(),
    )
    pick = jax.jit(task.feed.pick)
    steps, seen = task.feed.steps_per_epoch, []
    for epoch in range(2):
        for _, call in task.feed.calls(epoch * steps):
            element = jax.tree.map(lambda array: array[0], call)
            batch = pick(task.feed.data, element, jax.random.key(0))
            labels = np.asarray(batch["label"]).reshape(4, 2)
            assert (labels[:, 0] == labels[:, 1]).all() and len(set(labels[:, 0])) == 4
            seen.append(np.asarray(batch["index"]))
    assert len(seen) == 2 * steps and not np.array_equal(seen[:steps], seen[steps:])
    # The feed resumes in the middle of an epoch.
    if in_memory == "yes":
        _, call = next(iter(task.feed.calls(steps + 1)))
        assert np.array_equal(call[0], seen[steps + 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler__name": "identity"}, "unknown config.sampler.name 'identity'.*identities"),
        ({"sampler__images": 3}, r"batch_size=8 is not a multiple .*images=3; nearest: 6"),
        (
            {"sampler__images": 1, "data__subset": "old classes 0.5"},
            "needs as many, but the training set has 4",
        ),
        ({"base_loss": "circles"}, "unknown base loss 'circles'.*circle"),
    ],
)
def test_mistakes(changes, message, folders, flat_model):
    with pytest.raises(UserError, match=message):
        config = market_config(folders, **changes)
        configs.check(config)
        Compatible(config, sharding.make_mesh())


def test_metric_losses():
    embedding = jnp.asarray(RNG.standard_normal((8, 5)), jnp.float32)
    labels = jnp.array([0, 0, 1, 1, 2, 2, 3, 3])
    options = configs.reid()
    assert MetricLosses(FrozenConfigDict(options), 4).apply({}, embedding, labels) == {}
    options.triplet_weight, options.center_weight = 2.0, 0.25
    for soft, normalized in ((False, False), (True, True)):
        options.triplet_soft, options.triplet_normalize = soft, normalized
        module = MetricLosses(FrozenConfigDict(options), 4)
        variables = module.init(jax.random.key(0), embedding, labels)
        centers = variables["params"]["centers"]
        found = jax.jit(module.apply)(variables, embedding, labels)
        unit = embedding / jnp.linalg.norm(embedding, axis=1, keepdims=True)
        expected = losses.batch_hard_triplet(
            unit if normalized else embedding, labels, None if soft else 0.3
        )
        np.testing.assert_allclose(found["batch_hard"], 2 * expected, rtol=1e-5)
        np.testing.assert_allclose(
            found["center"], 0.25 * jnp.square(embedding - centers[labels]).sum(1).mean(), rtol=1e-5
        )

    # The weight applies only to the embedding.
    def center_loss(e, c):
        return module.apply({"params": {"centers": c}}, e, labels)["center"]

    gradients = jax.jit(jax.grad(center_loss, (0, 1)))(embedding, centers)
    difference = embedding - centers[labels]
    np.testing.assert_allclose(gradients[0], 0.25 * 2 * difference / 8, rtol=1e-5)
    by_class = difference.reshape(4, 2, 5).sum(1)
    np.testing.assert_allclose(gradients[1], -2 * by_class / 8, rtol=1e-5, atol=1e-6)


def test_heads():
    embedding = RNG.standard_normal((6, 5)).astype(np.float32)
    classifier = RNG.standard_normal((4, 5)).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 0, 1])
    cosine = losses.cosine_logits(embedding, classifier)
    for kind, head in (
        ("arcface_monotonic", arcface_monotonic),
        ("amsoftmax", losses.cosface),
        ("circle", circle),
    ):
        found = losses.base_logits(kind, embedding, classifier, labels, 64.0, 0.25)
        np.testing.assert_array_equal(found, head(cosine, labels, 64.0, 0.25))
    assert set(losses.BASE_LOSSES) < set(losses.HEADS)


def test_schedule_with_floors():
    rate = learning_rate("cosine", 2.0, 110, 10, warmup_start=0.01, floor=0.002)
    assert [rate(e) for e in (0, 5, 10)] == pytest.approx([0.02, 2 * 0.505, 2.0])
    assert rate(60) == pytest.approx(2 * (0.002 + 0.998 / 2))
    assert rate(109) > 0.004 and rate(110) == pytest.approx(0.004)
    rates = [rate(e) for e in range(110)]
    assert np.all(np.diff(rates[:11]) > 0) and np.all(np.diff(rates[10:]) < 0)
    steps = learning_rate("multistep", 2.0, 120, 10, milestones=(40, 70), warmup_start=0.01)
    assert [steps(e) for e in (0, 9, 10, 40, 70)] == pytest.approx([0.02, 1.802, 2, 0.2, 0.02])
    with pytest.raises(UserError, match=r"floor is a share of the rate in \[0, 1\], not 2"):
        learning_rate("cosine", 1.0, 10, floor=2)


def test_rates_of_biases_and_centers():
    """Compare with two separate optimizers: one at the common rate, plain SGD for the centres."""
    config = ConfigDict(configs.compatible().optimizer)
    config.schedule.name, config.bias_lr_factor = "constant", 2.0
    params = {
        "model": {"fc": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}},
        "metric": {"centers": jnp.ones(3)},
    }
    optimizer = build_optimizer(config, 2, 5)
    state = optimizer.init(params)
    plain = ConfigDict(config)
    plain.bias_lr_factor, plain.center_lr = 1.0, 0.0
    reference = build_optimizer(plain, 2, 5)
    expected_state = reference.init(params["model"])
    model = params["model"]
    update, update_reference = jax.jit(optimizer.update), jax.jit(reference.update)
    for step in range(4):
        gradients = jax.tree.map(lambda p, s=step: jnp.cos(p + s), params)
        updates, state = update(gradients, state, params)
        expected, expected_state = update_reference(gradients["model"], expected_state, model)
        found = updates["model"]["fc"]
        np.testing.assert_allclose(found["kernel"], expected["fc"]["kernel"], rtol=1e-6)
        np.testing.assert_allclose(found["bias"], 2 * expected["fc"]["bias"], rtol=1e-6)
        np.testing.assert_allclose(
            updates["metric"]["centers"], -0.5 * gradients["metric"]["centers"], rtol=1e-6
        )
        params = optax.apply_updates(params, updates)
        model = params["model"]


@pytest.mark.parametrize("resize", [None, 36])
def test_upright_images_on_host_and_device(resize):
    given = data.Preprocessing(size=32, width=16, resize=resize, flip=False)
    assert given.shape == (32, 16) and data.Preprocessing(size=5).shape == (5, 5)
    assert data.Preprocessing.from_dict(given.to_dict()) == given
    image = np.asarray(picture(3, 0, (40, 60)))
    host = given.on_host(image)
    assert host.shape == (32, 16, 3)
    levels = np.asarray(given.on_device(image[None]))[0] * given.std + np.array(given.mean)
    difference = np.abs(levels * 255 - host)
    assert difference.max() < 2.01 and (difference > 0.01).mean() < 0.2  # rounding after each pass


def test_upright_mistakes():
    with pytest.raises(UserError, match="width must be at least 1, or 0 for a square"):
        data.Preprocessing(width=-1)
    with pytest.raises(UserError, match="nearest right value is 48"):
        data.Preprocessing(size=32, width=48, resize=40)


@pytest.mark.slow
def test_upright_model_embeds_any_size(market_runs):
    model = load_model(market_runs[1]["bct"])
    images = np.stack([np.asarray(picture(person, 0, (64, 128))) for person in range(3)])
    found = model.embed(images)
    assert found.shape == (3, 8) and np.isfinite(found).all()
    ready = np.stack([model.preprocessing.on_host(image) for image in images])
    np.testing.assert_allclose(found, model.embed(ready), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["market1501_compatible", "ms1m_compatible"])
def test_configs(name):
    module = __import__(f"configs.{name}", fromlist=["get_config"])
    plan = module.benchmark()
    for changes in [*plan["tests"].values(), *(c for s in plan["scenarios"].values() for c in s)]:
        config = module.get_config()
        config.update_from_flattened_dict(changes)
        configs.check(config)
        assert config.batch_size % config.sampler.images == 0
        data.Preprocessing.from_dict({**config.preprocessing, "resize": None})
