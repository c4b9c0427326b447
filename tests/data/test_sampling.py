"""Samplers: what they guarantee, on drawn labels, sizes, seeds and numbers of processes."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.data.sampling import (
    NOTHING,
    ClassBalancedSampler,
    IdentitySampler,
    RowsOfStep,
    Shuffled,
)
from fct_jax.errors import UserError

LABELS = st.lists(st.integers(-3, 12), min_size=1, max_size=90).map(np.array)
CHECKS = settings(deadline=None, max_examples=60)


@st.composite
def identity_samplers(draw):
    labels = draw(LABELS)
    p = draw(st.integers(1, len(np.unique(labels))))
    k, rounds = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, None]))
    seed = draw(st.integers(0, 3))
    return labels, p, k, rounds, IdentitySampler(labels, p, k, seed=seed, rounds=rounds)


@CHECKS
@given(identity_samplers(), st.integers(0, 5))
def test_identity_batches(case, epoch):
    labels, p, k, rounds, sampler = case
    batches = sampler(epoch)
    assert batches.shape == (sampler.steps_per_epoch, sampler.batch_size) and p * k == len(
        batches[0]
    )
    assert batches.dtype == np.int32
    counts = Counter(labels.tolist())
    visits = Counter()
    for batch in batches:
        groups = batch.reshape(p, k)
        assert (labels[groups] == labels[groups[:, :1]]).all()
        identities = labels[groups[:, 0]]
        assert len(set(identities.tolist())) == p
        visits.update(identities.tolist())
        for identity, group in zip(identities.tolist(), groups.tolist(), strict=True):
            # There are as many different images as possible, each about equally often.
            shown = Counter(group)
            assert len(shown) == min(k, counts[identity])
            assert max(shown.values()) - min(shown.values()) <= 1
    assert set(visits) == set(counts)
    # Filling up the first round may add one more.
    for identity, count in counts.items():
        most = max(count // k, 1) if rounds is None else min(max(count // k, 1), rounds)
        assert visits[identity] <= most + 1
    filled = -len(counts) % p
    if rounds == 1:
        assert Counter(visits.values()) == Counter([2] * filled + [1] * (len(counts) - filled))


@CHECKS
@given(identity_samplers())
def test_rounds_show_other_images(case):
    """Except in the filled-up batch, no image of an identity with K or more images comes twice."""
    labels, p, k, _, sampler = case
    batches = sampler(0)
    identities = len(np.unique(labels))
    first = batches[: -(-identities // p)].ravel()[: identities * k]
    later = batches[-(-identities // p) :].ravel()
    counts = Counter(labels.tolist())
    seen = Counter(np.concatenate([first, later]).tolist())
    for image, times in seen.items():
        assert times == 1 or counts[labels[image]] < k
    for image in later.tolist():
        assert counts[labels[image]] >= 2 * k


def test_steps_of_an_epoch():
    labels = np.repeat([0, 1, 2, 3, 4], [1, 4, 9, 12, 13])
    # Visits with K = 4 are 1, 1, 2, 3, 3; with P = 2 the rounds have 3 (filled up), 1, 1 batches.
    assert IdentitySampler(labels, 2, 4, rounds=None).steps_per_epoch == 3 + 1 + 1
    assert IdentitySampler(labels, 2, 4, rounds=2).steps_per_epoch == 3 + 1
    assert IdentitySampler(labels, 2, 4).steps_per_epoch == 3
    assert IdentitySampler(labels, 5, 4).steps_per_epoch == 1


@CHECKS
@given(LABELS, st.integers(0, 4), st.integers(0, 3), st.data())
def test_class_balance(labels, epoch, seed, data):
    size = data.draw(st.integers(1, len(labels)))
    sampler = ClassBalancedSampler(labels, size, seed=seed)
    batches = sampler(epoch)
    assert batches.shape == (len(labels) // size, size) == (sampler.steps_per_epoch, size)
    assert batches.dtype == np.int32
    classes = np.unique(labels)
    drawn = [(labels[batches] == name).sum() for name in classes]
    assert max(drawn) - min(drawn) <= 1
    for name in classes:
        images = np.flatnonzero(labels == name)
        times = [(batches == image).sum() for image in images]
        assert max(times) - min(times) <= 1
    # The same holds at any time within the epoch.
    for stop in range(0, batches.size, len(classes)):
        part = labels[batches.ravel()[stop : stop + len(classes)]]
        assert len(set(part.tolist())) == len(part)


@CHECKS
@given(identity_samplers(), st.integers(0, 3), st.data())
def test_processes_share_one_global_batch(case, epoch, data):
    """Parts are disjoint and their union is the batch of one process, P identities × K images."""
    labels, p, k, _, sampler = case
    count = data.draw(st.sampled_from([n for n in range(1, p * k + 1) if p * k % n == 0]))
    parts = np.arange(p * k).reshape(count, -1)
    processes = [pickle.loads(pickle.dumps(RowsOfStep(sampler, rows))) for rows in parts]
    steps = sampler.steps_per_epoch
    for step in range(epoch * steps, epoch * steps + steps):
        shares = [rows(step) for rows in processes]
        assert {len(share) for share in shares} == {p * k // count}
        batch = np.concatenate(shares)
        assert batch.tolist() == sampler(epoch)[step - epoch * steps].tolist()
        groups = labels[batch].reshape(p, k)
        assert (groups == groups[:, :1]).all() and len(set(groups[:, 0].tolist())) == p


@pytest.mark.parametrize("kind", ["identity", "class"])
def test_order_depends_on_seed_and_epoch_alone(kind):
    labels = np.random.default_rng(0).integers(0, 40, 400)

    def make(seed):
        if kind == "identity":
            return IdentitySampler(labels, 8, 4, seed=seed, rounds=None)
        return ClassBalancedSampler(labels, 32, seed=seed)

    one, same, other = make(1), pickle.loads(pickle.dumps(make(1))), make(2)
    later = one(7)  # out of order, as when a run is resumed
    assert np.array_equal(one(0), same(0)) and np.array_equal(later, same(7))
    assert not np.array_equal(one(0), one(7)) and not np.array_equal(one(0), other(0))
    # Epoch e of seed s is not epoch e - 1 of seed s + 1.
    assert not np.array_equal(one(1), other(0))


def test_draws_are_even_over_epochs():
    """Over many epochs every image of an identity is shown about as often."""
    labels = np.repeat(np.arange(6), 10)
    sampler = IdentitySampler(labels, 3, 2)
    times = np.bincount(np.concatenate([sampler(e).ravel() for e in range(500)]), minlength=60)
    assert times.sum() == 500 * 12 and times.min() > 70 and times.max() < 130  # 100 expected


def sampler_of_classes(count, batch_size, seed):
    return ClassBalancedSampler(np.arange(count) % 3, batch_size, seed=seed)


@pytest.mark.parametrize("make", [Shuffled, sampler_of_classes])
def test_rows_of_any_step(make):
    sampler = make(10, 4, seed=5)
    whole = np.concatenate([sampler(epoch) for epoch in range(9)])
    for rows in (np.arange(4), np.array([1, 3])):
        of = pickle.loads(pickle.dumps(RowsOfStep(sampler, rows)))
        for step in (3, 2, 4, 0, 17, 16, 1):
            assert of(step).tolist() == whole[step, rows].tolist()


@CHECKS
@given(st.integers(1, 60), st.data())
def test_a_kept_last_batch_completes_the_epoch(count, data):
    size, epoch = data.draw(st.integers(1, count)), data.draw(st.integers(0, 3))
    dropped, kept = Shuffled(count, size, seed=2), Shuffled(count, size, seed=2, keep_last=True)
    assert (dropped.steps_per_epoch, dropped.last_size) == (count // size, size)
    assert (kept.steps_per_epoch == -(-count // size) and kept.last_size == count % size) or size
    batches = kept(epoch)
    assert batches.shape == (kept.steps_per_epoch, size) and batches.dtype == np.int32
    np.testing.assert_array_equal(batches[: count // size], dropped(epoch))
    assert sorted(batches[batches != NOTHING]) == list(range(count))
    assert (batches[-1, kept.last_size :] == NOTHING).all()


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_a_kept_last_batch(processes):
    sampler = Shuffled(22, 8, seed=1, keep_last=True)  # batches of 8, 8 and 6
    parts = [
        RowsOfStep(sampler, rows, last)
        for rows, last in zip(
            np.split(np.arange(8), processes), np.split(np.arange(6), processes), strict=True
        )
    ]
    for step in range(6):
        expected = sampler(step // 3)[step % 3]
        expected = expected[expected != NOTHING]
        shares = [rows(step) for rows in parts]
        assert {len(share) for share in shares} == {len(expected) // processes}
        assert np.concatenate(shares).tolist() == expected.tolist()
        numbers = np.concatenate([rows.numbers(step) for rows in parts])
        assert numbers.tolist() == list(range(len(expected)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IdentitySampler([0, 0, 1], 3, 2), "training set has 2; largest possible: 2"),
        (lambda: IdentitySampler([0, 1], 0, 2), "identities .* at least 1, not 0"),
        (lambda: IdentitySampler([0, 1], 1, 0), "images .* at least 1, not 0"),
        (lambda: IdentitySampler([0, 1], 1, 1, rounds=0), "rounds .* at least 1, not 0"),
        (lambda: IdentitySampler([], 1, 1), "N at least 1"),
        (lambda: IdentitySampler([0.5], 1, 1), "integer labels"),
        (lambda: ClassBalancedSampler([0, 1], 3), "between 1 and 2"),
        (lambda: ClassBalancedSampler([0, 1], 0), "between 1 and 2"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
