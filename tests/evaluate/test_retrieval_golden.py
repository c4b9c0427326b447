"""Distances, CMC, mAP, backfilling orders and curves against the published code's arrays."""

import itertools

import numpy as np
import pytest
from retrieval_oracle import l1_rows

from fct_jax.evaluate.backfill import curves_of_rows
from fct_jax.evaluate.distances import Keys, distances
from fct_jax.evaluate.metrics import results_of_keys
from fct_jax.evaluate.orders import backfill_order

METRICS = ("l2", "cosine")
CASES = ("main", "ties")
KINDS = ("random", "distance", "sigma")
NAMES = {"top1": "cmc@1", "top5": "cmc@5", "map": "map"}


def golden_keys(arrays, case, metric):
    """Return our keys; the reference's "cosine" divides by L1 norms."""
    query, gallery = arrays[f"{case}/query"], arrays[f"{case}/gallery"]
    if metric == "cosine":
        return Keys(l1_rows(query), l1_rows(gallery), "dot")
    return Keys(query, gallery, "l2")


def check_distances(golden, case, metric):
    arrays = golden.arrays("metrics")
    query, gallery = arrays[f"{case}/query"], arrays[f"{case}/gallery"]
    head = arrays[f"{case}/{metric}/dist_head"]
    diagonal = arrays[f"{case}/{metric}/dist_diag"]
    if metric == "l2":
        ours, own = distances(query[: len(head), None], gallery), distances(query, gallery)
    else:
        keys = golden_keys(arrays, case, metric)
        ours = 1 + keys.fill(0, len(query), np.empty(keys.shape))
        ours, own = ours[: len(head)], np.diagonal(ours)
    np.testing.assert_allclose(ours, head, rtol=0, atol=1e-6 * max(1, head.max()))
    np.testing.assert_allclose(own, diagonal, rtol=0, atol=1e-6 * max(1, diagonal.max()))


def check_metrics(golden, case, metric):
    arrays = golden.arrays("metrics")
    labels = arrays[f"{case}/labels"]
    results = results_of_keys(
        golden_keys(arrays, case, metric), labels, labels, leave_one_out=True, ks=(1, 5)
    )
    expected = arrays[f"{case}/{metric}/ap_per_query"]
    np.testing.assert_array_equal(np.isnan(results.ap), np.isnan(expected))
    off = np.abs(results.ap - expected)
    # The recorded float32 cosines are near 1, and two queries have a pair of items that only
    # float64 tells apart.
    near_ties = 2 if (case, metric) == ("main", "cosine") else 0
    assert np.count_nonzero(off > 1e-6) == near_ties and np.nanmax(off) < 1e-4
    values = results.mean()
    stable, as_is = f"{case}/{metric}/stable", f"{case}/{metric}/as_is"
    for name, ours in NAMES.items():
        assert values[ours] == pytest.approx(arrays[f"{stable}/{name}"], abs=1e-6)
        recorded = arrays[f"{as_is}/{name}"]
        # "as_is" broke ties arbitrarily: only mAP, and CMC without ties, are defined.
        if name == "map" or case == "main":
            assert values[ours] == pytest.approx(recorded, abs=1e-6)
        else:
            low, high = arrays[f"{stable}/curve_random/{name}_bounds"][0]
            assert low - 1e-6 <= recorded <= high + 1e-6


def check_orders(golden, case):
    arrays = golden.arrays("metrics")
    new, transformed, sigma = (arrays[f"{case}/{x}"] for x in ("query", "gallery", "sigma"))
    ours = backfill_order("uncertainty", uncertainty=sigma)
    np.testing.assert_array_equal(ours, arrays[f"{case}/stable/order_sigma"])
    ours = backfill_order("distance", new=new, transformed=transformed)
    np.testing.assert_array_equal(ours, arrays[f"{case}/l2/stable/order_distance"])
    # The reference's "cosine" orders L1-normalised rows.
    by_dot = -(1 - np.sum(l1_rows(new) * l1_rows(transformed), axis=1))
    np.testing.assert_array_equal(
        np.argsort(by_dot, kind="stable"), arrays[f"{case}/cosine/stable/order_distance"]
    )
    # The order is arbitrary among ties, but descending.
    assert (np.diff(sigma[arrays[f"{case}/as_is/order_sigma"]]) <= 0).all()
    as_is = arrays[f"{case}/l2/as_is/order_distance"]
    gap = np.linalg.norm(new.astype(float) - transformed, axis=1)
    assert (np.diff(gap[as_is]) <= 1e-6).all()
    as_is = arrays[f"{case}/cosine/as_is/order_distance"]
    assert (np.diff(by_dot[as_is]) >= -1e-6).all()


def golden_order(arrays, case, metric, ties, kind):
    if kind == "random":
        return arrays[f"{case}/order_random"]
    if kind == "sigma":
        return arrays[f"{case}/{ties}/order_sigma"]
    return arrays[f"{case}/{metric}/{ties}/order_distance"]


def golden_curve(arrays, case, metric, order):
    rows, kind = [arrays[f"{case}/query"], arrays[f"{case}/gallery"]], "l2"
    if metric == "cosine":
        rows, kind = [l1_rows(r) for r in rows], "dot"
    labels = arrays[f"{case}/labels"]
    curves = curves_of_rows(*rows, labels, {"o": order}, kind=kind, steps=20, ks=(1, 5))
    return curves["o"]


def cmc_bounds(arrays, case, metric, order, k, steps=20):
    """Return the smallest and largest CMC@k at each point that an order of the ties can give."""
    new, old, labels = (arrays[f"{case}/{name}"] for name in ("query", "gallery", "labels"))
    new, old = np.float64(new), np.float64(old)
    if metric == "cosine":
        new, old = l1_rows(new), l1_rows(old)
    same = labels[:, None] == labels
    positive = same & ~np.eye(len(labels), dtype=bool)
    bounds = []
    for cut in np.arange(steps + 2) * len(labels) // (steps + 1):
        mixed = old.copy()
        mixed[order[:cut]] = new[order[:cut]]
        near = -new @ mixed.T if metric == "cosine" else distances(new[:, None], mixed)
        first = np.where(positive, near, np.inf).min(axis=1, keepdims=True)
        before = (~same & (near < first - 1e-6)).sum(axis=1)  # however ties are broken
        not_after = (~same & (near <= first + 1e-6)).sum(axis=1)
        bounds.append([np.mean(places < k) for places in (not_after, before)])
    return np.transpose(bounds)


def check_curves(golden, case, metric, kind):
    arrays = golden.arrays("metrics")
    values64 = golden.json("metrics")["values_float64"][case][metric]
    # Float32 cosines near 1 swap some pairs: the float64 run is this far from the recorded one.
    noise = golden.json("float32_vs_float64")["files"]["metrics"]
    tolerance = 1e-6 + noise[f"{case}/{metric}/stable/curve_{kind}/map"][0]
    for ties in ("stable", "as_is"):
        order = golden_order(arrays, case, metric, ties, kind)
        curve = golden_curve(arrays, case, metric, order)
        prefix = f"{case}/{metric}/{ties}/curve_{kind}"
        recorded_auc = dict(zip(NAMES, arrays[f"{prefix}/auc"], strict=True))
        for name, ours in NAMES.items():
            recorded = arrays[f"{prefix}/{name}"]
            # CMC depends on the order of ties, mAP does not.
            if ties == "as_is" and case == "ties" and name != "map":
                low, high = cmc_bounds(arrays, case, metric, order, int(name.removeprefix("top")))
                assert (low - 1e-6 <= recorded).all() and (recorded <= high + 1e-6).all()
                continue
            np.testing.assert_allclose(curve.values[ours], recorded, rtol=0, atol=tolerance)
            assert curve.auc(ours) == pytest.approx(values64[ties][kind][f"auc_{name}"], abs=1e-6)
            assert curve.auc(ours) == pytest.approx(recorded_auc[name], abs=1e-6)
        np.testing.assert_allclose(
            curve.values["map"], values64[ties][kind]["map"], rtol=0, atol=tolerance
        )
        np.testing.assert_array_equal(curve.fraction[[0, -1]], [0, 1])
        whole = values64[ties]["no_backfill_original_order"]
        assert curve.values["map"][0] == pytest.approx(whole["map"], abs=1e-6)
        if ties == "stable":
            for name in ("top1", "top5"):
                low, high = arrays[f"{prefix}/{name}_bounds"].T
                ours = curve.values[NAMES[name]]
                assert (low - 1e-6 <= ours).all() and (ours <= high + 1e-6).all()


CHECKS = [
    *((check_orders, case) for case in CASES),
    *((check, *rest) for check in (check_distances, check_metrics) for rest in
      itertools.product(CASES, METRICS)),
    *((check_curves, *rest) for rest in itertools.product(CASES, METRICS, KINDS)),
]  # fmt: skip


def title(check) -> str:
    function, *rest = check
    return "-".join([function.__name__.removeprefix("check_"), *rest])


@pytest.mark.parametrize("check", CHECKS, ids=title)
def test_golden(check, golden_fct):
    function, *rest = check
    function(golden_fct, *rest)


class Recording:
    """A golden folder that records which of its arrays were read."""

    def __init__(self, golden):
        self.json = golden.json
        self._golden = golden
        self.read = set()

    def arrays(self, name: str) -> "Recording.Arrays":
        return self.Arrays(self._golden.arrays(name), self.read)

    class Arrays:
        def __init__(self, arrays, read):
            self._arrays, self._read = arrays, read

        def __getitem__(self, name):
            self._read.add(name)
            return self._arrays[name]


def test_every_golden_array_is_read(golden_fct):
    """Run the checks once more, and check that they read all arrays."""
    recording = Recording(golden_fct)
    for function, *rest in CHECKS:
        function(recording, *rest)
    assert set(golden_fct.arrays("metrics")) - recording.read == set()
