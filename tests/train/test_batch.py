"""Batch size and learning rate as the config states them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from fct_jax import config as configs
from fct_jax.errors import UserError
from fct_jax.train import batch_size as batch
from fct_jax.train.accumulate import MicroBatches


def mesh(data, model=1):
    return SimpleNamespace(shape={"data": data, "model": model}, size=data * model)


def config(**changes):
    made = configs.compatible()
    made.optimizer.lr = 0.1
    made.optimizer.lr_reference_batch = changes.pop("lr_reference_batch", 0)
    made.sampler.name = changes.pop("sampler", "")
    made.update(changes)
    return made


def test_what_is_stated_outright_stays():
    found = batch.resolved(config(batch_size=256), mesh(8))
    assert (found.batch_size, found.optimizer.lr) == (256, 0.1)
    assert batch.summary(found, mesh(8)) == "batch 256 = 8 devices × 32; lr 0.1"
    assert batch.summary(found, mesh(1)) == "batch 256 = 1 device × 256; lr 0.1"


def test_per_device_batch_and_scaled_rate():
    given = config(
        batch_size=0, per_device_batch_size=64, accumulate_steps=2, lr_reference_batch=256
    )
    found = batch.resolved(given, mesh(8))
    assert (found.batch_size, found.optimizer.lr) == (1024, 0.4)
    text = batch.summary(found, mesh(8))
    assert text.startswith("batch 1,024 = 8 devices × 64 × 2 accumulated") and "lr 0.4" in text
    assert "losses between samples see 512" in text
    assert given.batch_size == 0 and given.optimizer.lr == 0.1  # the config itself is unchanged
    assert batch.resolved(found, mesh(8)) == found  # nothing is scaled twice
    given.batch_size = 1024  # stated twice, consistently
    assert batch.resolved(given, mesh(8)).batch_size == 1024


def test_devices_that_share_a_classifier_have_images_of_their_own():
    found = batch.resolved(config(batch_size=0, per_device_batch_size=5), mesh(2, 4))
    assert found.batch_size == 40
    said = "batch 40 = 8 devices × 5; a classifier over 4; lr 0.1"
    assert batch.summary(found, mesh(2, 4)) == said
    with pytest.raises(UserError, match="42 does not divide over 8 devices; nearest: 40"):
        batch.resolved(config(batch_size=42), mesh(2, 4))


def test_the_same_global_batch_on_other_devices_is_the_same_config():
    given = config(batch_size=240, lr_reference_batch=120)
    assert batch.resolved(given, mesh(8)) == batch.resolved(given, mesh(1))


@pytest.mark.parametrize(
    "changes, devices, words",
    [
        ({"batch_size": 100}, 8, "100 does not divide over 8 devices; nearest: 96"),
        ({"batch_size": 0}, 1, "nearest: 1"),
        ({"batch_size": 100, "accumulate_steps": 3}, 1, "accumulate_steps=3 .*; nearest: 99"),
        ({"batch_size": 100, "accumulate_steps": 3}, 8, "over 8 devices into .*; nearest: 96"),
        ({"batch_size": 256, "per_device_batch_size": 64}, 8, "nearest: config.batch_size=512"),
        ({"batch_size": -8}, 8, "config.batch_size must be an integer from 0 on, not -8"),
        ({"accumulate_steps": 0}, 1, "config.accumulate_steps must be an integer from 1 on"),
        ({"lr_reference_batch": -1}, 1, "lr_reference_batch must be"),
        (
            {"batch_size": 60, "accumulate_steps": 2, "sampler": "identities"},
            1,
            "whole identities of 4 images; nearest: 64",
        ),
    ],
)
def test_what_does_not_fit_gives_the_nearest_that_does(changes, devices, words):
    with pytest.raises(UserError, match=words):
        batch.resolved(config(**changes), mesh(devices))


def test_micro_batches_are_whole_groups_and_together_the_batch():
    rows = np.arange(24)
    for count, group in ((2, 1), (3, 4), (1, 4)):
        micro = MicroBatches(count, group)
        parts = [np.asarray(micro.part({"x": rows}, i)["x"]) for i in range(count)]
        assert sorted(np.concatenate(parts)) == rows.tolist()
        for part in parts:
            assert len(part) == 24 // count
            assert (np.diff(part.reshape(-1, group)) == 1).all()
    assert batch.micro_batches(config(accumulate_steps=2)) == (2, 1)
    assert batch.micro_batches(config(accumulate_steps=2, sampler="identities")) == (2, 4)
    assert batch.micro_batches(configs.transformation()) == (1, 1)


def test_each_micro_batch_has_a_key_of_its_own():
    key = jax.random.key(0)
    micro = MicroBatches(2)
    keys = {tuple(jax.random.key_data(micro.key(key, i)).tolist()) for i in range(2)}
    assert len(keys) == 2
    assert MicroBatches().key(key, 0) is key
