"""Validation of a classifier that is split over devices gathers neither it nor its logits."""

import json
from pathlib import Path

import cluster
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluate_large_classes import BATCH, CLASSES
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from patience import LONG

from fct_jax.train.validation import ranks


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    script = Path(cluster.__file__).with_name("evaluate_large_classes.py")
    codes, said = cluster.run(
        lambda _: [script], 1, tmp_path_factory.mktemp("logs"), timeout=LONG, devices=8
    )
    assert codes == [0], said
    return json.loads(said[0].splitlines()[-1])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_four_parts_are_validated_like_a_whole_one(found):
    """Of 32 samples, every eighth has the class of each of the ranks 0 to 7; two have none."""
    whole, split = (found[name]["metrics"] for name in ("whole", "split"))
    assert whole["top1"] == 3 / 30 and whole["top5"] == pytest.approx(18 / 30)
    assert split == pytest.approx(whole, rel=1e-5)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_no_device_gets_the_classes_of_another(found):
    """Devices exchange counts and sums, and the few classes that the padding shifts."""
    assert found["whole"]["parts"] == 1 and found["split"]["parts"] == 4
    sizes = [size for _, size in found["split"]["collectives"]]
    assert len(sizes) > 2
    assert max(sizes) < CLASSES / 8
    part = BATCH // 2 * CLASSES // 4 * 4  # bytes of a device's logits
    assert found["split"]["memory"] < 4 * part


@settings(deadline=None, max_examples=50)
@given(
    logits=arrays(np.float32, (3, 7), elements=st.integers(-2, 2).map(np.float32)),
    labels=arrays(np.int32, 3, elements=st.integers(0, 6)),
)
def test_ranks_are_those_of_top_k(logits, labels):
    order = np.asarray(jax.lax.top_k(logits, 7)[1])
    expected = [list(row).index(label) for row, label in zip(order, labels, strict=True)]
    assert list(ranks(logits, labels)) == expected


def test_nan_is_no_hit():
    logits = jnp.array([[jnp.nan, 1.0, 0.0]] * 3)
    assert list(ranks(logits, jnp.arange(3))) == [3, 1, 2]
