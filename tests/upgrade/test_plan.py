"""Plans: the order of items, their number for a budget, and the forecast."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny

from fct_jax.errors import UserError
from fct_jax.evaluate.metrics import retrieval_metrics
from fct_jax.storage import sorting, spilled
from fct_jax.storage.checksums import digest_of
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.migration.budget import Forecast
from fct_jax.upgrade.migration.planning import ranked, read_plan
from fct_jax.upgrade.migration.probe import Probe
from fct_jax.upgrade.migration.upgrade import Upgrade

COUNT = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return paths of galleries in each form, and the arrays."""
    folder = tmp_path_factory.mktemp("plan")
    ids, old, new = tiny.vectors(COUNT, noise=0.5)
    paths = {form: tiny.write_gallery(form, folder / form, ids, old) for form in tiny.FORMS}
    return paths, ids, old, new


def write_probe(folder, made, kind, count=60):
    """Write queries near every second item of the gallery."""
    _, ids, _, new = made
    rng = np.random.default_rng(3)
    items = np.arange(0, COUNT, 2)
    wanted = rng.integers(0, len(items), count)
    queries = new[items[wanted]] + 0.3 * rng.standard_normal((count, tiny.NEW_DIM))
    labels = items % 5 if kind == "map" else None
    query_labels = labels[wanted] if kind == "map" else None
    EmbeddingSet.of(new[items], ids[items], labels).write(folder / "new")
    EmbeddingSet.of(queries.astype(np.float32), labels=query_labels).write(folder / "query")
    if kind == "mrr":
        np.save(folder / "relevant.npy", ids[items[wanted]])
    return queries.astype(np.float32), items, wanted


@pytest.mark.parametrize("form", tiny.FORMS)
def test_most_uncertain_first(made, tmp_path, form):
    paths, ids, old, _ = made
    found = Upgrade(tmp_path).plan(tiny.plain_map(), paths[form], batch_size=16)
    order = np.argsort(-old[:, 0], kind="stable")  # the stand-in map's uncertainty
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_array_equal(found.ids, ids[order])
    assert found.description["cut"] == "no budget: all items"
    np.testing.assert_allclose(np.load(tmp_path / "plan" / "uncertainty.npy"), 2 * old[:, 0])
    again = read_plan(tmp_path / "plan", open_gallery(paths[form]), tiny.plain_map())
    assert again.digest == found.digest and len(again) == COUNT
    with pytest.raises(UserError, match="plan exists already; nothing was overwritten"):
        Upgrade(tmp_path).plan(tiny.plain_map(), paths[form])


def test_ranked_by_definition():
    uncertainty = np.array([0.0, 1.0, 1.0, 2.0, -1.0], np.float32)
    assert ranked("uncertainty", uncertainty, None, 0).tolist() == [3, 1, 2, 0, 4]
    weights = np.array([10.0, 0.0, 1.0, 0.0, 100.0])
    slow = sorted(
        range(5), key=lambda i: (-np.exp(uncertainty[i]) * weights[i], -uncertainty[i], i)
    )
    assert ranked("uncertainty", uncertainty, weights, 0).tolist() == slow == [4, 0, 2, 3, 1]
    # In reverse order.
    assert ranked("certainty", uncertainty, None, 0).tolist() == [4, 0, 1, 2, 3]
    assert ranked("certainty", uncertainty, weights, 0).tolist() == [4, 0, 2, 1, 3]
    shuffled = ranked("random", uncertainty, None, 7)
    assert sorted(shuffled) == list(range(5))
    np.testing.assert_array_equal(shuffled, ranked("random", uncertainty, None, 7))


def test_traffic(made, tmp_path, capsys):
    paths, ids, old, _ = made
    kind = [("id", np.int64), ("weight", np.float64)]
    traffic = np.array([(ids[3], 1e12), (ids[8], 1e3), (123456789, 5.0), (ids[8], 1.0)], kind)
    np.save(tmp_path / "traffic.npy", traffic)
    found = Upgrade(tmp_path / "up").plan(
        tiny.plain_map(), paths["set"], traffic=str(tmp_path / "traffic.npy")
    )
    plain = "".join(f"{one},{weight!r}\n" for one, weight in traffic.tolist())
    lines = "".join(f'{{"id": {one}, "count": {weight!r}}}\n' for one, weight in traffic.tolist())
    columns = {"id": traffic["id"], "count": traffic["weight"]}
    pq.write_table(pa.table(columns), tmp_path / "traffic.parquet")
    (tmp_path / "traffic.csv").write_text("id,count\n" + plain)
    (tmp_path / "traffic.jsonl").write_text(lines)
    for form in ("csv", "jsonl", "parquet"):
        again = Upgrade(tmp_path / form).plan(
            tiny.plain_map(), paths["set"], traffic=str(tmp_path / f"traffic.{form}")
        )
        assert again.rows.tolist() == found.rows.tolist()
    rest = [r for r in np.argsort(-old[:, 0], kind="stable") if r not in (3, 8)]
    assert found.rows.tolist() == [3, 8, *rest]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("traffic: 1 id (123456789) not in the gallery, left out") == 4
    left = found.description["forecast"]["error_left"]
    assert left[0] == 1 and left[1] < 1e-6  # all items with traffic are done

    def refused(array, message):
        np.save(tmp_path / "bad.npy", array)
        with pytest.raises(UserError, match=message):
            Upgrade(tmp_path / "x").plan(
                tiny.plain_map(), paths["set"], traffic=str(tmp_path / "bad.npy")
            )

    refused(np.arange(3.0), "or have the fields 'id' and 'weight'")
    refused(np.array([(ids[0], -1.0)], kind), "weights must be finite and at least 0")
    refused(np.array([(-5, 1.0)], kind), "none of its ids is in")
    np.savez(tmp_path / "bad.npz", id=ids[:3])
    (tmp_path / "bad.csv").write_text("id,clicks\n7,3\n")
    for name, message in (
        ("nowhere.npy", "cannot be read"),
        ("bad.npz", "not an .npz archive"),
        ("bad.csv", "has no column 'weight' or 'count', only"),
    ):
        with pytest.raises(UserError, match=message):
            Upgrade(tmp_path / "x").plan(
                tiny.plain_map(), paths["set"], traffic=str(tmp_path / name)
            )


@pytest.mark.parametrize(
    "budget, items, cut",
    [
        ({"budget_items": 30}, 30, "budget of 30 items"),
        ({"budget_items": 10**9}, COUNT, "no budget: all items"),
        ({"budget_money": 2.0, "cost_per_1000": 20.0}, 100, "budget of 2"),
        ({"budget_money": 0.07, "cost_per_1000": 10.0}, 7, "budget of 0.07"),
        ({"budget_money": 0.07, "cost_per_1000": 10.0, "budget_items": 5}, 5, "budget of 5 items"),
    ],
)
def test_budgets(made, tmp_path, budget, items, cut):
    paths, _, old, _ = made
    found = Upgrade(tmp_path).plan(tiny.plain_map(), paths["set"], **budget)
    assert len(found) == found.description["items"] == items
    assert found.description["cut"] == cut
    np.testing.assert_array_equal(found.rows, np.argsort(-old[:, 0], kind="stable")[:items])


@pytest.mark.parametrize("kind", ["mrr", "map", "agreement@10"])
def test_forecast_by_definition(made, tmp_path, kind):
    paths, _, old, new = made
    queries, items, wanted = write_probe(tmp_path / "probe", made, kind)
    found = Upgrade(tmp_path).plan(tiny.plain_map(), paths["faiss"], probe=tmp_path / "probe")
    forecast = Forecast(**found.description["forecast"])
    assert forecast.measure == kind and forecast.items[-1] == COUNT
    order = np.argsort(-old[:, 0], kind="stable")
    error = np.exp(2.0 * old[order, 0].astype(np.float64))
    for place in (0, 7, 20):
        done = order[: forecast.items[place]]
        mixed = old @ tiny.weight()
        mixed[done] = new[done]
        mixed = mixed[items]
        gap = ((queries[:, None] - mixed) ** 2).sum(-1)
        if kind == "mrr":
            rank = 1 + (gap < gap[np.arange(len(gap)), wanted][:, None]).sum(1)
            expected = np.mean(1 / rank)
        elif kind == "map":
            labels = items % 5
            expected = retrieval_metrics(queries, mixed, labels[wanted], labels)["map"]
        else:
            ideal = np.argsort(((queries[:, None] - new[items]) ** 2).sum(-1), axis=1)[:, :10]
            near = np.argsort(gap, axis=1)[:, :10]
            expected = np.mean(
                [len(set(a) & set(b)) / 10 for a, b in zip(ideal, near, strict=True)]
            )
        np.testing.assert_allclose(forecast.quality[place], expected, rtol=1e-6)
        left = error[forecast.items[place] :].sum() / error.sum()
        np.testing.assert_allclose(forecast.error_left[place], left, atol=1e-6)
    assert forecast.quality[-1] > forecast.quality[0]


def write_old_queries(folder, made, seed=4):
    """Write queries by the old model near old vectors, as the new model's are near new ones."""
    rng = np.random.default_rng(3)
    items = np.arange(0, COUNT, 2)
    wanted = rng.integers(0, len(items), 60)
    noise = np.random.default_rng(seed).standard_normal((60, tiny.OLD_DIM))
    asked = (made[2][items[wanted]] + 0.3 * noise).astype(np.float32)
    EmbeddingSet.of(asked).write(folder / "query_old")
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mrr", "map", "agreement@10"])
@pytest.mark.parametrize("way", ["dual", "fused"])
def test_forecast_is_of_the_way_of_serving(made, tmp_path, kind, way):
    """Plain searches of the old and new model give its ends; in between it changes."""
    paths, _, old, new = made
    queries, items, wanted = write_probe(tmp_path / "probe", made, kind)
    asked = write_old_queries(tmp_path / "probe", made)
    found = Upgrade(tmp_path).plan(
        tiny.plain_map(), paths["set"], probe=tmp_path / "probe", serve=way
    )
    forecast = Forecast(**found.description["forecast"])
    assert (forecast.way, found.description["serve"]) == (way, way)
    near = np.argsort(((queries[:, None] - new[items]) ** 2).sum(-1), axis=1)[:, :10]
    relevant = {
        "mrr": np.arange(100) == wanted[:, None],
        "map": (items % 5) == (items % 5)[wanted][:, None],
        "agreement@10": (np.arange(100)[None, :, None] == near[:, None]).any(-1),
    }[kind]

    def quality(gap):
        order = np.argsort(gap, axis=1, kind="stable")
        hit = np.take_along_axis(relevant, order, axis=1)
        if kind == "agreement@10":
            return hit[:, :10].mean()
        rank = np.arange(1, 101)
        precision = np.cumsum(hit, axis=1) / rank
        first = 1 / (1 + hit.argmax(axis=1))
        return np.mean(first if kind == "mrr" else (precision * hit).sum(1) / hit.sum(1))

    ends = (
        ((asked[:, None] - old[items]) ** 2).sum(-1),
        ((queries[:, None] - new[items]) ** 2).sum(-1),
    )
    np.testing.assert_allclose(forecast.quality[0], quality(ends[0]), rtol=1e-6)
    if way == "dual":
        np.testing.assert_allclose(forecast.quality[-1], quality(ends[1]), rtol=1e-6)
    assert len(set(forecast.quality)) > 2


def test_serving_both_models_needs_queries_of_both(made, tmp_path):
    write_probe(tmp_path / "probe", made, "mrr")
    settings = {"probe": tmp_path / "probe", "serve": "fused"}
    with pytest.raises(UserError, match="serve=fused queries both models: .* needs query_old"):
        Upgrade(tmp_path / "up").plan(tiny.plain_map(), made[0]["set"], **settings)
    with pytest.raises(UserError, match="unknown way of serving 'fusd'; did you mean 'fused'"):
        Upgrade(tmp_path / "up").plan(tiny.plain_map(), made[0]["set"], serve="fusd")


def test_target_quality(made, tmp_path):
    paths = made[0]
    write_probe(tmp_path / "probe", made, "mrr")

    def asked(target, name):
        return Upgrade(tmp_path / name).plan(
            tiny.plain_map(),
            paths["set"],
            probe=tmp_path / "probe",
            target_quality=target,
            order="random",
        )

    whole = Forecast(**asked(0.01, "low").description["forecast"])
    target = (whole.quality[0] + whole.quality[-1]) / 2
    found = asked(target, "middle")
    assert 0 < len(found) < COUNT
    np.testing.assert_allclose(whole.at(len(found)), target, atol=0.02)
    # No earlier step reaches the target.
    earlier = [
        q for i, q in zip(whole.items, whole.quality, strict=True) if i < len(found) and q > target
    ]
    assert not earlier
    assert (
        len(read_plan(tmp_path / "low" / "plan", open_gallery(paths["set"]), tiny.plain_map())) == 0
    )
    with pytest.raises(UserError, match="is never reached: the forecast mrr goes from"):
        asked(0.999, "high")
    with pytest.raises(UserError, match="needs a probe"):
        Upgrade(tmp_path / "x").plan(tiny.plain_map(), paths["set"], target_quality=0.5)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"order": "uncertanty"}, "unknown order of re-embedding 'uncertanty'; did you mean"),
        ({"budget_items": -1}, "budget_items must be 0"),
        ({"cost_per_1000": float("nan")}, "cost_per_1000 must be 0"),
        ({"budget_money": 1.0}, "budget_money needs cost_per_1000"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
    ],
)
def test_wrong_settings(made, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        Upgrade(tmp_path).plan(tiny.plain_map(), made[0]["set"], **settings)
    assert not list(tmp_path.iterdir())


def test_map_without_uncertainty(made, tmp_path):
    map = tiny.plain_map(uncertainty=False)
    with pytest.raises(UserError, match="no uncertainty to order by; use order"):
        Upgrade(tmp_path).plan(map, made[0]["set"], order="uncertainty")
    found = Upgrade(tmp_path).plan(map, made[0]["set"], budget_items=50)
    assert found.description["order"] == "random"
    assert len(set(found.rows)) == 50
    assert found.description["forecast"]["error_left"][3] is None


def test_plans_of_other_galleries(made, tmp_path):
    paths, ids, old, _ = made
    Upgrade(tmp_path).plan(tiny.plain_map(), paths["set"])
    other = tiny.write_gallery("set", tmp_path / "other", ids[::-1].copy(), old)
    with pytest.raises(UserError, match="is for another gallery"):
        read_plan(tmp_path / "plan", open_gallery(other), tiny.plain_map())
    with pytest.raises(UserError, match="is for another map"):
        read_plan(tmp_path / "plan", open_gallery(paths["set"]), tiny.plain_map(unit_output=True))
    np.save(tmp_path / "plan" / "ids.npy", ids)
    with pytest.raises(UserError, match="is damaged: its rows and ids differ"):
        read_plan(tmp_path / "plan", open_gallery(paths["set"]), tiny.plain_map())
    (tmp_path / "plan" / "plan.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path / "plan", open_gallery(paths["set"]), tiny.plain_map())


def test_probes_that_do_not_fit(made, tmp_path):
    _, ids, old, new = made

    def refused(message, items, queries, relevant=None, item_ids=ids):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        EmbeddingSet.of(items, item_ids).write(folder / "new")
        EmbeddingSet.of(queries).write(folder / "query")
        if relevant is not None:
            np.save(folder / "relevant.npy", relevant)
        with pytest.raises(UserError, match=message):
            Upgrade(tmp_path / "up").plan(tiny.plain_map(), made[0]["set"], probe=folder)

    refused("has dimension 5, .* has 6", old, new)
    refused("has dimension 6, but the map's new dimension is 5", old, old)
    refused(r"relevant.npy has shape \(3,\)", new, new, np.arange(3))
    refused("relevant.npy: 200 ids .* not in", new, new, np.full(COUNT, -4))
    refused("items of the probe .*: 200 ids", new, new, None, ids + 10**6)
    refused("is not finite", new, np.where(new > 1, np.nan, new))
    with pytest.raises(UserError, match="has no EmbeddingSet 'new'"):
        Upgrade(tmp_path / "up").plan(tiny.plain_map(), made[0]["set"], probe=tmp_path / "nothing")


def test_ties_of_the_probe_favour_the_lower_row(made, tmp_path):
    write_probe(tmp_path, made, "mrr", count=4)
    items = EmbeddingSet.read(tmp_path / "new")
    np.save(tmp_path / "relevant.npy", items.ids[[0, 1, 2, 2]])
    probe = Probe(tmp_path, "l2")
    same = np.zeros((len(items), tiny.NEW_DIM), np.float32)
    np.testing.assert_allclose(probe.quality(same), np.mean([1, 1 / 2, 1 / 3, 1 / 3]))


def test_digest_does_not_depend_on_the_width():
    assert digest_of(np.array([1, 2], np.int32)) == digest_of(np.array([1, 2]))
    text = np.array(["a", "bc"])
    assert digest_of(text) == digest_of(text.astype("U9")) != digest_of(np.array(["ab", "c"]))


def test_times_and_costs(made, tmp_path, capsys):
    found = Upgrade(tmp_path / "up").plan(
        tiny.plain_map(),
        made[0]["parquet"],
        order="random",
        budget_items=20,
        cost_per_1000=5.0,
        items_per_second=100.0,
    )
    assert len(found) == 20
    described = json.loads((tmp_path / "up" / "plan" / "plan.json").read_text())
    assert (described["order"], described["items"], described["count"]) == ("random", 20, COUNT)
    said = capsys.readouterr().err
    assert "20 of 200 items: budget of 20 items" in said and "cost" in said and "hours" in said


@pytest.mark.parametrize("order", ["uncertainty", "certainty", "traffic", "random"])
def test_a_plan_that_is_sorted_on_disk_is_the_same(made, tmp_path, monkeypatch, order):
    paths, ids, _, _ = made
    write_probe(tmp_path / "probe", made, "mrr")
    weights = np.zeros(COUNT // 2, [("id", np.int64), ("weight", np.float64)])
    weights["id"], weights["weight"] = ids[::2], np.arange(COUNT // 2) % 7
    np.save(tmp_path / "traffic.npy", weights)

    def planned(name):
        Upgrade(tmp_path / name).plan(
            tiny.plain_map(), paths["set"], probe=tmp_path / "probe", order=order,
            traffic=tmp_path / "traffic.npy" if order != "random" else None, budget_items=90,
        )  # fmt: skip
        return tiny.contents(tmp_path / name / "plan")

    in_memory = planned("in-memory")
    monkeypatch.setattr(sorting, "BLOCK", 32)
    monkeypatch.setattr(spilled, "_LARGE", 64)
    monkeypatch.setattr(spilled.blocks, "__defaults__", (23,))
    assert planned("on-disk") == in_memory
