"""`fct-jax compare orders`: areas by hand, and advice that does not take chance for a gain."""

import json

import numpy as np
import pytest

from fct_jax.cli import main
from fct_jax.compare.orders import compare_orders
from fct_jax.errors import UserError
from fct_jax.evaluate.metrics import per_query_results
from fct_jax.evaluate.orders import Order
from fct_jax.runtime.report import FILES
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade import fit
from fct_jax.upgrade.maps.loading import load_map

SEEN, N, CLASSES, D = 300, 360, 12, 16
SHARES = (0.0, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Make a map fitted on some items; it translates every third held-out item badly."""
    folder = tmp_path_factory.mktemp("orders")
    rng = np.random.default_rng(0)
    labels = np.arange(SEEN + N) % CLASSES
    new = rng.standard_normal((CLASSES, D))[labels] + 0.7 * rng.standard_normal((SEEN + N, D))
    noise = np.where(np.arange(SEEN + N) % 3 == 0, 2.5, 0.1)[:, None]
    old = new @ np.linalg.qr(rng.standard_normal((D, D)))[0]
    old += noise * rng.standard_normal(old.shape)
    for name, vectors in (("old", old), ("new", new)):
        for part, rows in (("fit", slice(0, SEEN)), ("test", slice(SEEN, None))):
            made = EmbeddingSet.of(
                vectors[rows].astype(np.float32),
                ids=np.arange(SEEN + N)[rows],
                labels=labels[rows],
                meta={"fingerprint": name},
            )
            made.write(folder / f"{part}_{name}")
    fit(folder / "fit_old", folder / "fit_new", method="ridge", out=folder / "map")
    return folder


def test_traffic_by_ids_is_that_by_rows(world, tmp_path):
    counts = np.arange(N) % 5
    log = "".join(f"{SEEN + row}\n" * int(n) for row, n in enumerate(counts)) + "999999\n"
    (tmp_path / "log.txt").write_text(log)
    weights = np.array(
        list(zip(np.arange(SEEN, SEEN + N), counts, strict=True)),
        [("id", np.int64), ("weight", np.float64)],
    )
    np.save(tmp_path / "weights.npy", weights)
    np.save(tmp_path / "counts.npy", counts)
    names = ["traffic", "uncertainty×traffic"]

    def compared(traffic):
        sets = (world / name for name in ("map", "test_old", "test_new"))
        return compare_orders(
            *sets, orders=names, shares=SHARES, max_queries=40, resamples=20, traffic=traffic
        )

    expected = compared(counts)
    for file in ("log.txt", "weights.npy", "counts.npy"):
        found = compared(tmp_path / file)
        for name in names:
            np.testing.assert_array_equal(found.rows[name].curve, expected.rows[name].curve)
        unknown = ["1 id (999999)" in note for note in found.notes]
        assert unknown == ([True] if file == "log.txt" else [])
    (tmp_path / "none.txt").write_text("nobody\n")
    with pytest.raises(UserError, match="names none of the 360 items"):
        compared(str(tmp_path / "none.txt"))


def test_areas_by_hand(world):
    """Each curve is the mAP of its mixed galleries, with the query's own item left out."""
    made = compare_orders(
        world / "map",
        world / "test_old",
        world / "test_new",
        orders=["random", "distance"],
        shares=SHARES,
        metric="l2",
    )
    old, new = (EmbeddingSet.read(world / f"test_{name}") for name in ("old", "new"))
    moved, _ = load_map(world / "map").transform(old.vectors)
    assert made.items == N and made.queries == N and made.by == "labels"

    def ap(migrated):
        gallery = np.where(migrated[:, None], new.vectors, moved)
        return per_query_results(new.vectors, gallery, new.labels).ap

    def curve(rank):
        points = []
        for share in SHARES:
            migrated = np.zeros(N, bool)
            migrated[rank[: int(share * N)]] = True
            points.append(ap(migrated).mean())
        return np.array(points)

    by_error = np.argsort(-np.linalg.norm(new.vectors - moved, axis=1), kind="stable")
    expected = curve(by_error)
    np.testing.assert_allclose(made.rows["distance"].curve, expected, atol=1e-5)
    random = np.mean([curve(np.random.default_rng(s).permutation(N)) for s in range(10)], axis=0)
    np.testing.assert_allclose(made.rows["random"].curve, random, atol=1e-5)
    area = np.trapezoid(expected, SHARES)
    row = made.rows["distance"]
    assert row.area[0] == pytest.approx(area, abs=1e-5)
    assert row.gain[0] == pytest.approx(area - np.trapezoid(random, SHARES), abs=1e-5)
    assert row.area[1] < row.area[0] < row.area[2]
    # The true error finds the badly translated third; it is an oracle, and so is not advised.
    assert row.oracle and row.sure > 0 and "No order is significantly better" in made.verdict()[0]
    assert list(made.rows) == ["distance", "random"]


def test_every_order_that_the_items_allow(world, tmp_path, capsys):
    words = ["orders", world / "map", world / "test_old", world / "test_new", "--shares", "0,0.5,1"]
    assert main(["compare", *map(str, words), "--json", "--out", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert "traffic" in found["skipped"] and "random" in found["orders"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == set(FILES)
    assert "Left out: traffic (needs traffic)" in shown.err
    assert "class_mean" in found["orders"] and "distance (oracle)" in shown.err
    assert max(map(len, shown.err.splitlines())) <= 200
    traffic = tmp_path / "traffic.npy"
    np.save(traffic, np.arange(N))
    made = compare_orders(
        world / "map",
        world / "test_old",
        world / "test_new",
        traffic=traffic,
        orders=["traffic"],
        shares=(0, 0.5, 1),
    )
    assert set(made.rows) == {"random", "traffic"}


def test_orders_of_pure_chance_are_not_advised(world):
    """Twelve orders are themselves random: none is called better or worse."""

    def chance(seed):
        return lambda items: np.random.default_rng(seed).random(items.n)

    chances = [Order(f"chance{i}", (), chance(99 + i), "x") for i in range(12)]
    made = compare_orders(
        world / "map", world / "test_old", world / "test_new", orders=chances, shares=(0, 0.5, 1)
    )
    assert {row.sure for row in made.rows.values()} == {0}
    assert made.verdict() == ["No order is significantly better than a random one: use any."]


def test_without_labels_the_curves_show_agreement(world, tmp_path):
    for name in ("old", "new"):
        vectors = EmbeddingSet.read(world / f"test_{name}").vectors
        np.save(tmp_path / f"{name}.npy", vectors)
    made = compare_orders(
        world / "map", tmp_path / "old.npy", tmp_path / "new.npy", orders=["random"], shares=(0, 1)
    )
    assert made.by == "agreement" and made.target == "recall@10"
    assert made.rows["random"].curve[-1] == pytest.approx(1)
    assert any("not whether that model is better" in note for note in made.report().notes)


def test_mistakes(world, capsys):
    base = [world / "map", world / "test_old", world / "test_new"]
    for words, message in (
        ([*base, "--orders", "uncertain"], "did you mean 'uncertainty'"),
        ([*base, "--orders", "traffic"], "order 'traffic' needs traffic"),
        ([*base, "--shares", "0.1,1"], "shares must grow from 0 to 1"),
        (base[:2], "compare takes CONFIG, or orders MAP OLD NEW"),
        ([*base, "--seeds", "2"], "--seeds belongs to a benchmark"),
        ([world / "nomap", *base[1:]], "nomap"),
    ):
        capsys.readouterr()
        assert main(["compare", "orders", *map(str, words)]) == 1, words
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1 and message in said[0], said
    with pytest.raises(UserError, match="max_queries must be"):
        compare_orders(*base, max_queries=3)
