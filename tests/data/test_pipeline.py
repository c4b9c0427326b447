"""The pipeline: every image where it belongs, the same every time, from any saved state."""

import logging as standard_logging

import numpy as np
import pytest
from absl import logging
from tiny_batches import digits, folder, same, take
from tiny_data import write_folder

from fct_jax.data import Preprocessing, batches, load_all
from fct_jax.data.sampling import Shuffled
from fct_jax.errors import UserError

SMALL = Preprocessing(size=8)


def indices(some):
    return np.concatenate([batch["index"] for batch in some])


def check_content(source, batch):
    assert batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32
    assert batch["index"].dtype == np.int64 and batch["flip"].dtype == bool
    assert {len(value) for value in batch.values()} == {len(batch["label"])}
    for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
        np.testing.assert_array_equal(image, source[int(index)]["image"])
        assert label == source.labels[index]


def test_plain_pass_is_in_order_with_a_last_batch_of_one():
    source = digits("3-4")
    size = len(source) - 1
    first, last = take(batches(source, SMALL, batch_size=size, train=False, seed=0))
    assert len(last["label"]) == 1
    np.testing.assert_array_equal(indices([first, last]), np.arange(len(source)))
    check_content(source, last)
    assert not first["flip"].any()
    # A batch larger than the set is fine outside training.
    (only,) = take(batches(source, SMALL, batch_size=10**6, train=False, seed=0))
    check_content(source, only)


def test_training_shuffles_every_epoch_and_drops_the_rest():
    source = digits("0-1")
    n = len(source)
    iterator = batches(source, SMALL, batch_size=32, train=True, seed=5, epochs=3)
    steps = n // 32
    assert iterator.steps_per_epoch == steps
    got = take(iterator)
    assert len(got) == 3 * steps
    epochs = [indices(got[e * steps :][:steps]) for e in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 32 * steps
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for epoch in epochs:
        assert abs(np.corrcoef(epoch, np.arange(len(epoch)))[0, 1]) < 0.3
    check_content(source, got[3])
    flips = np.concatenate([batch["flip"] for batch in got])
    assert 0.4 < flips.mean() < 0.6
    unflipped = batches(
        source, Preprocessing(size=8, flip=False), batch_size=32, train=True, seed=5
    )
    assert not np.concatenate([batch["flip"] for batch in take(unflipped, 5)]).any()


def test_same_seed_same_batches():
    source = digits("0-2")

    def run(seed):
        return take(batches(source, SMALL, batch_size=50, train=True, seed=seed), 20)

    same(run(1), run(1))
    orders = [tuple(indices(run(seed)[:6])) for seed in (0, 1, 2)]
    assert len(set(orders)) == 3
    # Epoch 1 of one seed is not epoch 0 of the next.
    assert tuple(indices(run(0)[6:12])) != orders[1]


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 13])
def test_any_batch_can_be_gone_to(stop):
    source = digits("0-2")

    def new():
        return batches(source, SMALL, batch_size=50, train=True, seed=3, epochs=4)

    iterator = new()
    take(iterator, stop)
    assert iterator.position == stop
    rest = take(iterator)
    other = new()
    take(other, 2)
    other.seek(stop)
    same(take(other), rest)
    assert len(rest) == 4 * new().steps_per_epoch - stop


def test_a_pass_over_chosen_images(damaged):
    source = folder(damaged, on_error="skip")
    chosen = np.array([39, 2, 3, 4, 10, 11, 0])
    common = {"batch_size": 2, "train": False, "seed": 0}
    got = take(batches(source, SMALL, indices=chosen, **common))
    assert [batch["index"].tolist() for batch in got] == [[39, 2], [4], [], [0]]
    with pytest.raises(UserError, match=r"0/3\.png"):
        take(batches(folder(damaged), SMALL, indices=chosen, **common))
    assert take(batches(source, SMALL, indices=chosen[:0], **common)) == []


@pytest.mark.parametrize("processes", [2, 3])
def test_every_process_takes_its_rows_of_one_global_batch(processes):
    """Rows need not be adjacent, and one process may resume after three batches."""
    source = digits("0-2")

    def new(rows=None):
        return batches(source, SMALL, batch_size=60, train=True, seed=9, epochs=2, rows=rows)

    whole = take(new())
    for shares in (np.split(np.arange(60), processes), np.arange(60).reshape(-1, processes).T):
        parts = [new(rows) for rows in shares]
        for part in parts[1:]:
            part.seek(3)
        taken = [take(parts[0])[3:], *map(take, parts[1:])]
        assert {len(part) for part in taken} == {len(whole) - 3}
        for step, batch in enumerate(whole[3:]):
            for rows, part in zip(shares, taken, strict=True):
                same([part[step]], [{key: value[rows] for key, value in batch.items()}])


def test_views_without_crops():
    source = digits("7")
    for view, flipped in ((0, False), (1, True), (2, False)):
        got = take(batches(source, SMALL, batch_size=40, train=False, seed=0, view=view))
        assert all((batch["flip"] == flipped).all() for batch in got)
        np.testing.assert_array_equal(indices(got), np.arange(len(source)))
        check_content(source, got[0])


def test_views_with_crops(tmp_path):
    source = folder(write_folder(tmp_path))
    crop = Preprocessing(size=12, train_crop="random_resized")

    def view(number, seed=4, batch_size=8):
        common = {"train": False, "seed": seed, "view": number}
        got = take(batches(source, crop, batch_size=batch_size, **common))
        return {key: np.concatenate([batch[key] for batch in got]) for key in got[0]}

    same([view(3)], [view(3, batch_size=5)])
    for other in (view(2), view(3, seed=5)):
        assert not np.array_equal(other["image"], view(3)["image"])
    for index in (0, 11):
        rng = np.random.default_rng([4, 3, index])
        flip = rng.random() < 0.5
        assert view(3)["flip"][index] == flip
        np.testing.assert_array_equal(
            view(3)["image"][index], crop.on_host(source[index]["image"], rng)
        )
    # Training at epoch e sees view e.
    trained = take(batches(source, crop, batch_size=20, train=True, seed=4, epochs=4))
    for batch in trained[3:]:
        np.testing.assert_array_equal(batch["image"], view(3)["image"][batch["index"]])
        np.testing.assert_array_equal(batch["flip"], view(3)["flip"][batch["index"]])


def test_fixed_crop_outside_training(tmp_path):
    source = folder(write_folder(tmp_path, size=None))
    settings = Preprocessing(size=12, resize=14, train_crop="random_resized")
    (batch,) = take(batches(source, settings, batch_size=100, train=False, seed=0))
    assert batch["image"].shape == (20, 12, 12, 3)
    for i in range(20):
        np.testing.assert_array_equal(batch["image"][i], settings.on_host(source[i]["image"]))
    squashed = Preprocessing(size=12)
    (batch,) = take(batches(source, squashed, batch_size=100, train=False, seed=0))
    assert batch["image"].shape == (20, 12, 12, 3)


def test_unreadable_image_stops_or_is_skipped(damaged, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    caplog.set_level(standard_logging.WARNING)
    with pytest.raises(UserError, match=r"training/0/3\.png"):
        take(batches(folder(damaged), SMALL, batch_size=4, train=False, seed=0))

    # The source's own setting applies unless another is given.
    iterator = batches(folder(damaged, on_error="skip"), SMALL, batch_size=5, train=False, seed=0)
    got = take(iterator)
    assert [len(batch["label"]) for batch in got] == [5] * 7 + [2]
    np.testing.assert_array_equal(indices(got), np.setdiff1d(np.arange(40), [3, 10, 11]))
    check_content(folder(damaged), got[0])
    assert len(iterator.skipped) == 3
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 3 and sum("training/1/0.png" in text for text in warnings) == 1


def test_whole_batch_unreadable(damaged):
    source = folder(damaged, classes="1")
    got = take(batches(source, SMALL, batch_size=2, train=False, seed=0, on_error="skip"))
    np.testing.assert_array_equal(indices(got), np.arange(2, 10))
    for i in range(2, 10):
        (damaged / "training" / "1" / f"{i}.png").write_bytes(b"")
    assert take(batches(source, SMALL, batch_size=2, train=False, seed=0, on_error="skip")) == []
    with pytest.raises(UserError, match="not one image could be read"):
        load_all(source, SMALL, on_error="skip")


def test_an_unreadable_image_is_replaced_by_one_of_its_class(damaged):
    """Nothing else changes: the batches around it are those of undamaged data."""
    source = folder(damaged, on_error="skip")

    def new(rows=None):
        return batches(source, SMALL, batch_size=6, train=True, seed=1, epochs=5, rows=rows)

    everything = take(new())
    assert {len(batch["label"]) for batch in everything} == {6}
    assert not set(indices(everything)) & {3, 10, 11}
    order = Shuffled(40, 6, seed=1)
    wanted = np.concatenate([order(epoch) for epoch in range(5)])
    replaced = 0
    for batch, planned in zip(everything, wanted, strict=True):
        check_content(source, batch)
        np.testing.assert_array_equal(batch["label"], source.labels[planned])
        sound = ~np.isin(planned, [3, 10, 11])
        np.testing.assert_array_equal(batch["index"][sound], planned[sound])
        replaced += (~sound).sum()
    assert replaced >= 10
    for stop in (1, 4, 9, 17):
        other = new()
        other.seek(stop)
        same(take(other), everything[stop:])
    shares = np.split(np.arange(6), 2)
    halves = zip(*(take(new(rows)) for rows in shares), strict=True)
    for whole, (first, second) in zip(everything, halves, strict=True):
        np.testing.assert_array_equal(whole["index"], indices([first, second]))


def test_no_readable_image_of_the_class_or_at_all(damaged):
    for i in range(10):
        (damaged / "training" / "1" / f"{i}.png").write_bytes(b"")
    got = take(
        batches(folder(damaged, on_error="skip"), SMALL, batch_size=40, train=True, seed=0), 1
    )
    assert len(got[0]["label"]) == 40 and not (got[0]["label"] == 1).any()
    only = folder(damaged, classes="1", on_error="skip")
    with pytest.raises(UserError, match="not one image could be read"):
        next(batches(only, SMALL, batch_size=2, train=True, seed=0))


def test_load_all(damaged):
    source = digits("5", "validation")
    seen = []
    whole = load_all(source, SMALL, progress=lambda done, total: seen.append((done, total)))
    assert whole["image"].shape == (len(source), 8, 8, 3) and whole["image"].dtype == np.uint8
    np.testing.assert_array_equal(whole["label"], source.labels)
    np.testing.assert_array_equal(whole["index"], np.arange(len(source)))
    assert seen[-1] == (len(source), len(source))
    with pytest.raises(UserError, match=r"0/3\.png"):
        load_all(folder(damaged), SMALL)
    kept = load_all(folder(damaged), SMALL, on_error="skip")
    assert len(kept["label"]) == len(kept["image"]) == 37 and 3 not in kept["index"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"batch_size": 1001},
            "batch_size 1001 is larger than the training set of 1000; largest possible: 1000",
        ),
        ({"workers": -1}, "workers must be at least 0"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"view": 1}, "view is for passes outside training"),
        ({"on_error": "stop"}, "unknown on_error 'stop'"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(UserError, match=message):
        batches(digits(), SMALL, **({"batch_size": 10, "train": True, "seed": 0} | values))
