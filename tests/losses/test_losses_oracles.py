"""Every loss against a plain loop over samples, on sizes and labels of all kinds."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax import losses
from fct_jax.storage.class_statistics import class_statistics

DIM, OLD, NEW = 6, 4, 7


def unit(x):
    return x / max(math.sqrt(sum(x * x)), 1e-12)


def softmax_loss(logits, target):
    top = max(logits)
    return top + math.log(sum(math.exp(value - top) for value in logits)) - logits[target]


def mean(values):
    return sum(values) / len(values) if values else 0.0


def arc_logits(vector, rows, label, scale, margin):
    cosines = [float(np.clip(unit(vector) @ unit(row), -1, 1)) for row in rows]
    return [
        scale * math.cos(math.acos(cosine) + (margin if row == label else 0.0))
        for row, cosine in enumerate(cosines)
    ]


def slow_bct(world):
    return mean(
        [
            softmax_loss(world["w_old"] @ f, y)
            for f, y in zip(world["new"], world["labels"], strict=True)
            if y < OLD
        ]
    )


def slow_bct_ract(world):
    values = []
    for f, y in zip(world["new"], world["labels"], strict=True):
        if y < OLD:
            rivals = [value for c, value in enumerate(world["w_new"] @ f) if c != y]
            values.append(softmax_loss([*(world["w_old"] @ f), *rivals], y))
    return mean(values)


def slow_unibct(world):
    stats, values = world["radii"], []
    seen = [c for c in range(OLD) if stats.num_kept[c]]
    for f, y in zip(world["new"], world["labels"], strict=True):
        if y in seen:
            own = seen.index(y)
            values.append(softmax_loss(arc_logits(f, stats.center[seen], own, 30.0, 0.3), own))
    return mean(values)


def slow_lce(world):
    stats, boundary, aligned = world["angles"], [], []
    for f, y in zip(world["new"], world["labels"], strict=True):
        if y < OLD and stats.num_kept[y] >= 2:
            cosine = float(np.clip(unit(f) @ unit(stats.center[y]), -1, 1))
            boundary.append(max(math.acos(cosine) - stats.radius[y], 0.0))
            aligned.append(1 - unit(stats.center[y]) @ unit(world["w_new"][y]))
    return mean(boundary) + mean(aligned)


def slow_boundary(world, radius="radius", elastic=False, threshold=1.0):
    stats, values = world["radii"], []
    for f, y in zip(world["new"], world["labels"], strict=True):
        if y < OLD and stats.num_kept[y] >= 2:
            r = getattr(stats, radius)[y]
            if elastic:
                step = abs(r - threshold) / (1 + math.exp(-world["elastic"][y]))
                r = r + step if r < threshold else r - step
            excess = math.dist(unit(f), stats.center[y]) - r
            if excess > 0:
                values.append(excess)
    return mean(values)


def slow_point(world):
    stats, values = world["radii"], []
    for f, o, y in zip(world["new"], world["old"], world["labels"], strict=True):
        if y < OLD and stats.num_kept[y] >= 1:
            center = unit(stats.center[y])
            values.append(math.dist(unit(f), center) - math.dist(unit(o), center))
    return mean([value for value in values if value > 0])


def others(world, i):
    return [j for j, label in enumerate(world["labels"]) if label != world["labels"][i]]


def slow_contrast(world, top_k, temperature, with_new):
    new, old = [unit(f) for f in world["new"]], [unit(o) for o in world["old"]]
    values = []
    for i in range(len(new)):
        logits = [new[i] @ old[i]]
        for candidates in [old, new] if with_new else [old]:
            scores = sorted((new[i] @ candidates[j] for j in others(world, i)), reverse=True)
            logits += scores[:top_k] if top_k else scores
        values.append(softmax_loss(np.array(logits) / temperature, 0))
    return mean(values)


def slow_triplet(world, top_k, with_new):
    new, old = [unit(f) for f in world["new"]], [unit(o) for o in world["old"]]
    total = 0.0
    for i in range(len(new)):
        positive = math.dist(new[i], old[i])
        for candidates in [old, new] if with_new else [old]:
            far = sorted(math.dist(new[i], candidates[j]) for j in others(world, i))
            far = far[:top_k] if top_k else far
            total += sum(max(positive - value + 0.8, 0.0) for value in far)
    return total / len(new) / min(top_k or len(new), len(new))


def slow_l2(world):
    pairs = zip(world["new"], world["old"], strict=True)
    return mean([mean(list((unit(f) - unit(o)) ** 2)) for f, o in pairs])


def soft(logits, temperature):
    powers = [math.exp((value - max(logits)) / temperature) for value in logits]
    return [power / sum(powers) for power in powers]


def slow_lwf(world):
    values = []
    for f, o in zip(world["new"], world["old"], strict=True):
        old, new = soft(world["w_old"] @ o, 2.0), soft(world["w_old"] @ f, 2.0)
        values.append(-sum(p * math.log(q) for p, q in zip(old, new, strict=True)))
    return mean(values)


def slow_focal(world, kind, temperature):
    values = []
    for f, o, y in zip(world["new"], world["old"], world["labels"], strict=True):
        a, b = world["w_old"] @ f, world["w_old"] @ o
        weight = 1.0 + (5.0 if np.argmax(b) == y else 0.0)
        pairs = zip(soft(b, temperature), soft(a, temperature), strict=True)
        kl = temperature**2 * sum(p * math.log(p / q) for p, q in pairs)
        values.append(weight * (kl if kind == "kl" else 0.5 * sum((a - b) ** 2)))
    return mean(values)


PAIRS = {
    f"{name}-{top_k}": (name, top_k)
    for name in ("hot_refresh", "contrastive", "triplet", "triplet_ract")
    for top_k in (0, 2, 10)
}


def fast_and_slow(name, world):
    new, old, labels, w_old = (world[key] for key in ("new", "old", "labels", "w_old"))
    if name in PAIRS:
        name, top_k = PAIRS[name]
        if name in ("hot_refresh", "contrastive"):
            fast = getattr(losses, name)(new, old, labels, temperature=0.1, top_k=top_k)
            return fast, slow_contrast(world, top_k, 0.1, name == "hot_refresh")
        fast = getattr(losses, name)(new, old, labels, top_k=top_k)
        return fast, slow_triplet(world, top_k, name == "triplet_ract")
    old_logits, logits = old @ w_old.T, new @ w_old.T
    radii, angles = world["radii"], world["angles"]
    boundary = losses.advbct_boundary
    both = {
        "bct": lambda: (losses.bct(new, labels, w_old), slow_bct(world)),
        "bct_ract": lambda: (
            losses.bct_ract(new, labels, w_old, new @ world["w_new"].T),
            slow_bct_ract(world),
        ),
        "unibct": lambda: (losses.unibct(new, labels, radii.center), slow_unibct(world)),
        "lce": lambda: (sum(losses.lce(new, labels, angles, world["w_new"])), slow_lce(world)),
        "boundary": lambda: (boundary(new, labels, radii), slow_boundary(world)),
        "boundary-min": lambda: (
            boundary(new, labels, radii, radius="min"),
            slow_boundary(world, "smallest_radius"),
        ),
        "boundary-elastic": lambda: (
            boundary(new, labels, radii, world["elastic"], 0.7),
            slow_boundary(world, elastic=True, threshold=0.7),
        ),
        "point": lambda: (losses.advbct_point(new, old, labels, radii), slow_point(world)),
        "l2": lambda: (losses.l2(new, old), slow_l2(world)),
        "lwf": lambda: (losses.lwf(logits, old_logits), slow_lwf(world)),
        "focal-kl": lambda: (
            losses.focal_distillation(logits, old_logits, labels, temperature=3.0),
            slow_focal(world, "kl", 3.0),
        ),
        "focal-l2": lambda: (
            losses.focal_distillation(logits, old_logits, labels, kind="l2"),
            slow_focal(world, "l2", 1.0),
        ),
    }
    return both[name]()


NAMES = [
    "bct",
    "bct_ract",
    "unibct",
    "lce",
    "boundary",
    "boundary-min",
    "boundary-elastic",
    "point",
    "l2",
    "lwf",
    "focal-kl",
    "focal-l2",
    *PAIRS,
]


def make_world(labels, sizes, seed):
    """Return old and new embeddings, classifiers, and statistics of classes of these sizes."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    centers = normal(NEW, DIM)
    members = np.repeat(np.arange(OLD), sizes)
    training = centers[members] + 0.3 * normal(len(members), DIM)
    return {
        "labels": np.array(labels),
        "new": 2 * centers[labels] + 1.5 * normal(len(labels), DIM),
        "old": centers[labels] + 0.5 * normal(len(labels), DIM),
        "w_old": normal(OLD, DIM),
        "w_new": normal(NEW, DIM),
        "elastic": normal(NEW),
        "radii": class_statistics(training, members, OLD),
        "angles": class_statistics(training, members, OLD, "angle"),
    }


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=6)
@given(
    labels=st.sampled_from([[0], [6], [1, 1, 1], [5, 4, 5], [0, 1, 2, 3, 4, 5, 6, 0, 0, 2, 6]]),
    sizes=st.sampled_from([[5, 4, 1, 2], [0, 6, 1, 1], [0, 0, 0, 0]]),
    seed=st.integers(0, 99),
)
def test_equals_the_loop(name, labels, sizes, seed):
    fast, slow = fast_and_slow(name, make_world(labels, sizes, seed))
    np.testing.assert_allclose(fast, slow, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "option"), [("hot_refresh", {"temperature": 1.0}), ("triplet_ract", {})]
)
def test_gather_gradient_changes_gradients_alone(name, option):
    world = make_world([0, 1, 2, 4], [3, 3, 3, 3], 0)

    def loss(new, gather):
        function = getattr(losses, name)
        return function(new, world["old"], world["labels"], gather_gradient=gather, **option)

    plain, grad = jax.value_and_grad(loss)(world["new"], False)
    gathered, with_columns = jax.value_and_grad(loss)(world["new"], True)
    np.testing.assert_allclose(plain, gathered, rtol=1e-6)
    assert np.abs(grad - with_columns).max() > 1e-3


def test_shares():
    labels = [0, 0, 1, 2, 4, 6]  # sizes: class 1 has one member, class 2 none
    world = make_world(labels, [4, 1, 0, 3], 3)
    new, labels = world["new"], world["labels"]
    _, share = losses.bct(new, labels, world["w_old"], with_share=True)
    assert share == pytest.approx(4 / 6)
    logits = new @ world["w_new"].T
    _, share = losses.bct_ract(new, labels, world["w_old"], logits, with_share=True)
    assert share == pytest.approx(4 / 6)
    _, share = losses.unibct(new, labels, world["radii"].center, with_share=True)
    assert share == pytest.approx(3 / 6)
    (boundary, aligned), share = losses.lce(
        new, labels, world["angles"], world["w_new"], with_share=True
    )
    assert share == pytest.approx(2 / 6)
    assert boundary >= 0 and aligned >= 0
