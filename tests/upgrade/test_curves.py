"""Every way at every share, against searches one at a time and loops in plain Python."""

import dataclasses

import numpy as np
import pytest

from fct_jax.evaluate.orders import Items, find_order
from fct_jax.upgrade.assessment import curves as module
from fct_jax.upgrade.assessment import streamed
from fct_jax.upgrade.assessment.curves import Curves, typical_queries
from fct_jax.upgrade.assessment.keys import NOTHING, bits_of, decoded, key_of
from fct_jax.upgrade.assessment.lists import Lists, best_lists, masks_of
from fct_jax.upgrade.assessment.streamed import Streamed
from fct_jax.upgrade.assessment.tops import Scores
from fct_jax.upgrade.assessment.world import KEEP, WHOLE, Wish, World, spots_of
from fct_jax.upgrade.maps.backward import Backward
from fct_jax.upgrade.ways import WAYS, Mix
from fct_jax.upgrade.ways import relevance as judge
from fct_jax.upgrade.ways.calibration import Calibration, Weights, calibrate, with_spread
from fct_jax.upgrade.ways.serving import search

SHARES = (0.0, 0.3, 0.7, 1.0)
BACKWARD = {}  # of each world that was made


def made(
    metric="cosine", seed=0, leave_one_out=False, inside=False, weights=None, n=150, rotates=False
):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n + 60 + 40, 8))

    def embedded(dim):
        turn = rng.normal(size=(8, dim))
        return (latent @ turn + 0.7 * rng.normal(size=(len(latent), dim))).astype(np.float32)

    old, new = embedded(6), embedded(9)
    moved = (new + rng.normal(size=new.shape)).astype(np.float32)
    back = (old + 0.5 * rng.normal(size=old.shape)).astype(np.float32)
    gallery, sample, asked = slice(0, n), slice(n, n + 60), slice(n + 60, None)
    own = None
    if leave_one_out:
        own, asked = np.arange(40), slice(0, 40)
    labels = rng.integers(0, 12, len(latent))
    within = np.arange(0, n, 3) if inside else np.arange(0)
    start = (old[gallery][within], new[gallery][within]) if inside else (old[sample], new[sample])
    weight = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    items = {"old": old[gallery], "new": new[gallery], "translated": moved[gallery]}
    backward = Backward(weight, np.zeros(9))
    if not rotates:
        backward = Backward(weight + 0.2 * rng.normal(size=(9, 9)), rng.normal(size=9))
        items |= {"moved": backward.moved(new[gallery])}
        items |= {"forward": backward.moved(moved[gallery])}
    world = World(
        items=items,
        queries={
            "old": old[asked],
            "new": new[asked],
            "bridged": back[asked],
            "common": backward.asked(new[asked], 6),
            "moved": backward.moved(new[asked]),
        },
        relevance=judge.by_labels(labels[asked], labels[gallery], own),
        own=own,
        calibration=calibrate(*start, metric=metric, weights=weights),
        sample=tuple(part[:0] for part in start) if inside else start,
        inside=within,
    )
    known = Items(n, seed, metric, transformed=moved[gallery], uncertainty=rng.normal(size=n))
    BACKWARD[id(world)] = backward
    return world, known


def orders_of(ways, known):
    """Return the orders that each way names and these items allow."""
    return {
        way.name: [order for order in way.orders if not find_order(order).lacks(known)]
        for way in ways
    }


def searched(world, known, spot, depth, metric):
    """Return one point by `search`, calibrated on the items that both models know by then."""
    migrated = np.zeros(world.count, bool)
    if spot.order == "candidates":
        migrated[:] = True
    elif spot.share:
        migrated[find_order(spot.order).rank(known)[: int(spot.share * world.count)]] = True
    grown = migrated & (spot.order != "candidates")
    grown[world.inside] = True
    c = world.calibration
    reference = [
        space.items(np.concatenate([extra, items[grown]]))
        for space, extra, items in (
            (c.old, world.sample[0], world.items["old"]),
            (c.new, world.sample[1], world.items["new"]),
        )
    ]
    grown = Calibration(c.old, c.new, *reference, weights=c.weights)
    q = world.queries
    some = typical_queries(len(q["new"]))
    grown = with_spread(grown, q["old"][some], q["new"][some])
    _, rows = search(
        spot.way,
        q["old"],
        q["new"],
        world.items["old"],
        world.items["new"],
        migrated,
        depth,
        grown,
        translated=world.items["translated"],
        metric=metric,
        own=world.own,
        query_bridged=q["bridged"],
        backward=BACKWARD[id(world)],
    )
    return judge.per_query(rows, world.relevance)


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("cosine", {}),
        ("cosine", {"rotates": True}),
        ("cosine", {"leave_one_out": True}),
        ("cosine", {"inside": True, "leave_one_out": True}),
        ("l2", {"seed": 1}),
        ("cosine", {"weights": Weights(1.2, -0.3, 0.7, 1.4, 0.9, 0.2, damping=0.5)}),
    ],
)
def test_every_way_at_every_share_is_its_own_search(metric, options, monkeypatch):
    world, known = made(metric, **options)
    ways = [way for way in WAYS.values() if metric == "cosine" or not way.needs_backward]
    spots = spots_of(ways, orders_of(ways, known), SHARES)
    # Try only a few of the many settings of blends and cascades.
    spots = [spot for i, spot in enumerate(spots) if spot.way.done or i % 5 == 0]
    monkeypatch.setattr(module, "_BLOCK", 13 * 210)  # several blocks of queries
    found = Curves(world, known, 60).run(spots)
    assert len(found) == len(spots) + 2
    for name, size in {"ROWS": 64, "PREPARED": 25, "QUERIES": 13, "GATHERED": 900}.items():
        monkeypatch.setattr(streamed, name, size)
    in_blocks = Streamed(world, known, 60)
    for name, values in in_blocks.run(spots).items():
        for metric_name, value in values.items():
            np.testing.assert_allclose(value, found[name][metric_name], atol=1e-6, err_msg=name)
    for spot in spots:
        expected = searched(world, known, spot, 60, metric)
        for name, values in expected.items():
            np.testing.assert_allclose(
                found[spot.name][name], values, atol=1e-6, err_msg=f"{spot.name} {name}"
            )


def plain_ranking(scores, own):
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    return [row for row in order if row != own]


def test_ends_and_cascades_are_plain_loops():
    """Today's search, the new model's and a cascade agree with float64 loops in plain Python."""
    world, known = made(leave_one_out=True)
    names = ("cascade", "translated_cascade", "union_cascade", "translated", "bridge")
    ways = [WAYS[name] for name in names]
    spots = spots_of(ways, orders_of(ways, known), SHARES)
    found = Curves(world, known, 60).run(spots)

    def unit(rows):
        rows = rows.astype(np.float64)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    items = {kind: unit(rows) for kind, rows in world.items.items()}
    asked = {kind: unit(rows) for kind, rows in world.queries.items()}
    moved = np.zeros(world.count, bool)
    moved[find_order("uncertainty").rank(known)[: int(0.3 * world.count)]] = True
    for q in range(len(asked["new"])):
        own = int(world.own[q])
        old, new = items["old"] @ asked["old"][q], items["new"] @ asked["new"][q]
        translated = items["translated"] @ asked["new"][q]
        first, first_moved = plain_ranking(old, own), plain_ranking(translated, own)
        turns = [row for both in zip(first, first_moved, strict=True) for row in both]
        turns = list(dict.fromkeys(turns))
        rankings = {
            (KEEP, "", 0.0): first,
            (WHOLE, "", 1.0): plain_ranking(new, own),
            ("bridge", "", 0.0): plain_ranking(items["old"] @ asked["bridged"][q], own),
            ("translated", "uncertainty", 0.3): plain_ranking(
                np.where(moved, new, translated), own
            ),
            ("cascade 20 new", "candidates", 0.0): (
                sorted(first[:20], key=lambda row: -new[row]) + first[20:]
            ),
            ("translated_cascade 20 sum", "candidates", 0.0): (
                sorted(first_moved[:20], key=lambda row: -(new + translated)[row])
                + first_moved[20:]
            ),
            ("union_cascade 20 new", "candidates", 0.0): (
                sorted(turns[:20], key=lambda row: -new[row]) + turns[20:]
            ),
        }
        one = world.relevance.of(np.array([q]))
        for name, ranking in rankings.items():
            expected = judge.per_query(np.array([ranking[:60]]), one)
            for metric, value in expected.items():
                assert found[name][metric][q] == pytest.approx(value[0], abs=1e-6), (name, metric)


class Counted:
    """Vectors that count how often each row is read."""

    def __init__(self, vectors):
        self.vectors, self.read = vectors, np.zeros(len(vectors), int)

    def __len__(self):
        return len(self.vectors)

    def __getitem__(self, rows):
        self.read[rows] += 1
        return self.vectors[rows].astype(np.float16)


@pytest.mark.parametrize(("lists", "readings"), [(1 << 30, 1), (1, 4)])
def test_a_gallery_is_read_once_however_many_points(lists, readings, monkeypatch):
    """It is read again only for queries whose lists of the best would not fit."""
    world, known = made()
    items = {kind: Counted(vectors) for kind, vectors in world.items.items()}
    for name, size in {"ROWS": 64, "PREPARED": 25, "QUERIES": 13, "LISTS": lists}.items():
        monkeypatch.setattr(streamed, name, size)
    ways = [WAYS["translated"], WAYS["bridge"]]
    spots = spots_of(ways, orders_of(ways, known), SHARES)
    Streamed(dataclasses.replace(world, items=items), known, 60).run(spots)
    for counted in items.values():
        assert (counted.read == readings).all()


def test_best_items_are_those_of_a_sort():
    """Each list is that of a plain sort, with ties, signs and sums that bounds must allow for."""
    rng = np.random.default_rng(0)
    names = ("old", "new", "third")
    by_pair = {name: rng.integers(-4, 5, (7, 5000)).astype(np.float32) for name in names}  # ties
    by_pair["new"][:, 3000:] += 3  # an unlike part, which bounds skip at first
    scores, own = Scores(by_pair), np.array([-1, 0, 1, 2, 3, 4, 4999])
    factor, shift = rng.integers(1, 4, 7).astype(np.float32), np.arange(7, dtype=np.float32)
    mixes = [
        Mix({"old": factor}, shift),
        Mix({"new": 2.0, "old": factor}),
        Mix({"old": -1.0, "new": 1.0}, shift),
        Mix({"old": 1.0, "new": factor, "third": -2.0}),
    ]
    masks = [rng.random(5000) < share for share in (0.0, 0.4, 1.0)]
    for k, items in ((1, 5000), (300, 4000), (60, 50)):
        wishes = {
            (i, j, m): Wish(left, done, mask, k + i)
            for i, left in enumerate(mixes)
            for j, done in enumerate(mixes)
            for m, mask in enumerate(masks)
        }
        # Another wish for the same list, which need not be as long.
        wishes["shorter"] = Wish(mixes[1], mixes[1], masks[1], (k + 1) // 2)
        found = best_lists(by_pair, wishes, own, items)
        for one, other in zip(found.pop("shorter"), found[1, 1, 1], strict=True):
            np.testing.assert_array_equal(one, other[:, : (k + 1) // 2])
        del wishes["shorter"]
        lists = Lists(wishes, masks_of([wishes]), names, own)
        for start in range(0, items, 1700):
            part = slice(start, min(start + 1700, items))
            room = np.empty((lists.slots, 7, part.stop - start), np.float32)
            room[:3] = [by_pair[name][:, part] for name in names]
            lists.add(room, np.stack([mask[part] for mask in masks_of([wishes])]), start)
        for name, got in lists.ranked().items():
            for one, other in zip(got, found[name], strict=True):
                np.testing.assert_array_equal(one, other)
        for (i, j, m), wish in wishes.items():
            sums = [
                sum(np.asarray(f).reshape(-1, 1) * by_pair[n] for n, f in mixes[x].factors.items())
                + np.broadcast_to(mixes[x].shift, 7)[:, None]
                for x in (i, j)
            ]
            total = np.where(masks[m], sums[1], sums[0])
            ways = [found[i, j, m]]
            if i == j == 1:
                sorted_ = scores.best(wish.left, wish.done, wish.migrated, own, items, wish.width)
                ways.append(sorted_)
            for q in range(7):
                ranking = np.argsort(-total[q, :items], kind="stable")
                ranking = ranking[ranking != own[q]][: wish.width]
                for values, rows in ways:
                    np.testing.assert_array_equal(rows[q][rows[q] >= 0], ranking)
                    np.testing.assert_array_equal(values[q, : len(ranking)], total[q, ranking])
                    assert np.isneginf(values[q, len(ranking) :]).all()
    old, new = by_pair["old"], by_pair["new"]
    columns = np.sort(rng.permutation(5000)[:400])
    largest = scores.largest(Mix({"old": factor, "new": 2.0}), columns, 12)
    expected = np.sort(factor[:, None] * old[:, columns] + 2 * new[:, columns], axis=1)[:, ::-1]
    np.testing.assert_array_equal(largest, expected[:, :12])
    three = scores.largest(Mix({"old": 1.0, "new": 1.0}), columns, 3)
    assert three.shape == (7, 3)


def test_keys_rank_as_scores_and_rows_do():
    rng = np.random.default_rng(0)
    scores = rng.integers(-3, 4, 500).astype(np.float32) * np.float32(2.0**-140)  # ties, tiny
    scores[:40] = np.repeat(np.float32([-np.inf, np.inf, -3e38, 3e38]), 10)
    rows = rng.permutation(500).astype(np.int32) + (2**31 - 500)
    scores += np.float32(0)  # -0.0 is 0.0
    made = np.array(
        [key_of(bits, row) for bits, row in zip(scores.view(np.int32), rows, strict=True)]
    )
    order = np.argsort(made)
    np.testing.assert_array_equal(order, np.lexsort((rows, -scores.astype(np.float64))))
    values, names = decoded(made)
    np.testing.assert_array_equal(values, scores)
    np.testing.assert_array_equal(names, np.where(np.isneginf(scores), -1, rows))
    assert [bits_of(key) for key in made] == values.view(np.int32).tolist()
    assert (made < NOTHING).all() and decoded(np.array([NOTHING]))[1] == -1


def test_a_way_of_others_is_measured_too():
    world, known = made()
    mine = dataclasses.replace(
        WAYS["translated"], name="mine", done=lambda asked: Mix({"new": 0.5, "translated": 0.5})
    )
    spots = spots_of([mine], {"mine": ("random",)}, SHARES)
    found = Curves(world, known, 20).run(spots)
    half = searched(world, known, spots[1], 20, "cosine")
    np.testing.assert_allclose(found["mine", "random", 0.3]["mrr"], half["mrr"], atol=1e-6)
