"""Orders of re-embedding: each by its definition, the sums with traffic, and orders of others."""

import sys

import numpy as np
import pytest
from newer_examples import EXAMPLES

from fct_jax.errors import UserError
from fct_jax.evaluate.orders import ORDERS, Items, Order, backfill_order, find_order, times_traffic


def items(n=60, seed=0, **more):
    rng = np.random.default_rng(seed)
    return Items(
        n,
        old=rng.normal(size=(n, 4)).astype(np.float32),
        new=rng.normal(size=(n, 6)).astype(np.float32),
        transformed=rng.normal(size=(n, 6)).astype(np.float32),
        uncertainty=rng.normal(size=n),
        traffic=rng.integers(0, 4, n).astype(float),
        training=rng.normal(size=(15, 4)).astype(np.float32),
        classes=rng.integers(0, 5, n),
        candidates=rng.integers(0, 9, n),
        **more,
    )


@pytest.mark.parametrize("name", ORDERS)
def test_each_order_is_a_permutation_that_hangs_on_its_seed_alone(name):
    order = find_order(name)
    assert order.name == name and order.text
    first, again = order.rank(items()), order.rank(items())
    np.testing.assert_array_equal(np.sort(first), np.arange(60))
    np.testing.assert_array_equal(first, again)
    if order.needs:
        missing = Items(60)
        assert order.lacks(missing) == list(order.needs)
        with pytest.raises(UserError, match=f"needs {order.needs[0]}="):
            order.rank(missing)


def test_orders_by_their_definitions():
    known = items()

    def far(a, b):
        return float(np.linalg.norm(a.astype(float) - b))

    score = {
        "uncertainty": known.uncertainty,
        "certainty": -known.uncertainty,
        "distance": [far(n, t) for n, t in zip(known.new, known.transformed, strict=True)],
        "traffic": known.traffic,
        "candidates": known.candidates,
        "confidence": [min(far(o, t) for t in known.training) for o in known.old],
        "class_mean": [
            far(t, known.transformed[known.classes == c].mean(axis=0))
            for t, c in zip(known.transformed, known.classes, strict=True)
        ],
    }
    for name, values in score.items():
        slow = sorted(range(60), key=lambda i, v=values: (-v[i], i))
        assert ORDERS[name].rank(known).tolist() == slow, name
    assert ORDERS["random"].rank(items(seed=1)).tolist() == (
        np.random.default_rng(0).permutation(60).tolist()
    )


@pytest.mark.parametrize("name", ["uncertainty", "certainty", "distance", "confidence"])
def test_traffic_multiplies_the_expected_error(name):
    known, order = items(), ORDERS[name]
    plain = order.score(known)
    error = np.exp(order.log_gain(np.asarray(plain, float)))
    slow = sorted(range(60), key=lambda i: (-(error * known.traffic)[i], -plain[i], i))
    for found in (find_order(f"{name}×traffic"), find_order(f"{name}*traffic")):
        assert found.rank(known).tolist() == slow
    asked = known.traffic[slow]
    assert asked[: int((asked > 0).sum())].all()  # items that no query asks for come last


def test_classes_without_labels_are_cells():
    rng = np.random.default_rng(0)
    middle = np.repeat(np.eye(4) * 50, 64, axis=0)
    vectors = (middle + rng.normal(size=middle.shape) * 0.1).astype(np.float32)
    strange = [3, 100, 200]
    vectors[strange] += np.array([5.0, 5, 5, 5], np.float32)
    found = ORDERS["class_mean"].rank(Items(len(vectors), transformed=vectors))
    assert set(found[:3]) == set(strange)


def test_class_mean_is_the_published_example():
    case = EXAMPLES["lambda_orth.backfill_order"]
    vectors, labels = np.array(case["F_o"]), np.array(case["labels"])
    for metric, expected in (("l2", case["order"]), ("cosine", case["order_cosine"])):
        known = Items(len(vectors), metric=metric, transformed=vectors, classes=labels)
        if metric == "l2":
            assert ORDERS["class_mean"].rank(known).tolist() == expected
        else:  # rows that are equally far up to rounding may change places
            values = np.array(case["cosine_distance"])
            found = ORDERS["class_mean"].rank(known)
            np.testing.assert_allclose(values[found], np.sort(values)[::-1], atol=1e-6)


def test_mistakes_are_one_line():
    for name, message in (
        ("uncertanty", "did you mean 'uncertainty'"),
        ("random×traffic", "cannot be multiplied by traffic"),
        ("sigma", "'sigma' is now called 'uncertainty'"),
        ("sigma×traffic", "'sigma' is now called 'uncertainty'"),
        ("json:loads", "must be a fct_jax.evaluate.orders.Order, but it is of type function"),
        ("no_such_module:X", "there is no such module"),
    ):
        with pytest.raises(UserError, match=message) as error:
            find_order(name)
        assert "\n" not in str(error.value)
    wrong = Order("wrong", (), lambda known: np.zeros(3), "")
    with pytest.raises(UserError, match=r"scores must have shape \(60,\), not \(3,\)"):
        wrong.rank(items())


def test_an_order_of_ones_own(tmp_path, monkeypatch):
    """An order takes the newcomer's path of CONTRIBUTING.md: one file, named as module:name."""
    (tmp_path / "my_orders.py").write_text(
        "import numpy as np\n"
        "from fct_jax.evaluate.orders import Order\n\n"
        'SHORTEST = Order("shortest", ("old",), lambda items: -np.linalg.norm(items.old, axis=1),\n'
        '                 "shortest first")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    known, found = items(), find_order("my_orders:SHORTEST")
    assert np.all(np.diff(np.linalg.norm(known.old[found.rank(known)], axis=1)) >= 0)
    sys.modules.pop("my_orders")
    assert times_traffic(ORDERS["class_mean"]).needs == ("transformed", "traffic")
    assert backfill_order("class_mean", transformed=known.transformed).shape == (60,)
