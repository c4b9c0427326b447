"""Every map can be applied with NumPy alone, by the code that the docs show."""

import jax
import numpy as np
import pytest
from tiny_pairs import check_snippet

from fct_jax import models, upgrade
from fct_jax.frozen.model import write_model
from fct_jax.upgrade.maps.export import Plain, write_numpy
from fct_jax.upgrade.maps.functions import Local, Selu
from fct_jax.upgrade.maps.loading import map_of_run
from fct_jax.upgrade.maps.map import Map
from fct_jax.upgrade.maps.methods import METHODS

TRAINED = ("common", "common_relaxed", "converter", "fct", "fastfill", "lce")


def sample(unit, do=6, dn=6, n=700):
    rng = np.random.default_rng(0)
    old = rng.normal(size=(n, do)) + 2
    new = np.tanh(old @ rng.normal(size=(do, dn))) + 0.1 * rng.normal(size=(n, dn)) + 0.5
    if unit:
        old, new = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (old, new))
    return old.astype(np.float32), new.astype(np.float32)


def made(name, old, new, folder):
    if name == "unpaired":  # its function is one of `Linear`, like ridge's
        found = upgrade.fit(old, new, method="ridge", uncertainty=False)
        found = Map({**found.description, "method": name}, found.function)
        found.save(folder / "map")
        return found
    if name != "lce":
        return upgrade.fit(old, new, method=name, epochs=1, inner_dim=16, out=folder / "map")
    module = models.build("lce", blocks=2)
    variables = module.init(jax.random.key(0), old[:2], old[:2])
    dims = dict.fromkeys(("dim", "old_dim", "side_dim"), old.shape[1])
    prints = {f"{role}_fingerprint": role for role in ("old", "new", "side")}
    described = {"kind": "transformation", "name": "lce", "kwargs": {"blocks": 2}}
    write_model(
        folder / "run/model", {**described, **dims, **prints, "needs_side": False}, variables
    )
    found = map_of_run(folder / "run")
    found.save(folder / "map")
    return found


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in TRAINED)) for n in METHODS]
)
def test_every_map_is_exported(name, unit, tmp_path):
    old, new = sample(unit)
    found = made(name, old, new, tmp_path)
    assert found.method == name
    expected = found.transform(old)[0]
    check_snippet(tmp_path / "map", old, expected)
    assert unit == np.allclose(np.linalg.norm(expected, axis=1), 1) or name in ("identity", "lce")


@pytest.mark.parametrize("bandwidth", [np.nan, 0.05, 3.0])
def test_cells_are_a_gate_before_maps_side_by_side(bandwidth, tmp_path):
    rng = np.random.default_rng(1)
    shapes = ((5, 7), (5, 7, 4), (5, 4))
    function = Local(*(rng.normal(size=shape) for shape in shapes), bandwidth)
    found = Map({"method": "local", "dim_in": 7, "dim_out": 4}, function)
    found.save(tmp_path / "map")
    old = rng.normal(size=(200, 7)).astype(np.float32)
    check_snippet(tmp_path / "map", old, found.transform(old)[0])
    check_snippet(tmp_path / "map", old[:0], np.empty((0, 4)))


def test_a_converter_is_layers_with_selu_between(tmp_path):
    rng = np.random.default_rng(2)
    sizes = ((7, 9), (9, 9), (9, 4))
    dense = [
        (rng.normal(size=size).astype(np.float32), rng.normal(size=size[1]).astype(np.float32))
        for size in sizes
    ]
    old = rng.normal(size=(200, 7)).astype(np.float32)
    for unit in (False, True):
        described = {"method": "converter", "dim_in": 7, "dim_out": 4, "unit_output": unit}
        found = Map(described, Selu(dense, 2.5))
        found.save(tmp_path / f"map{unit}")
        expected = found.transform(old)[0]
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1 if unit else 2.5, rtol=1e-5)
        check_snippet(tmp_path / f"map{unit}", old, expected)


def test_a_reader_of_plain_files_stops_at_one_that_it_would_misread(tmp_path):
    from safetensors.numpy import load_file

    layers = [(np.eye(2), np.zeros(2))]
    cases = {
        "plain": (layers, True, {"unit"}),
        "selu": (Plain(layers, activation=(1.05, 1.67)), True, {"length", "activation"}),
        "gate": (Plain(layers, gate=np.zeros((3, 1))), False, {"length", "gate"}),
        "length": (Plain(layers, length=2.0), False, {"length"}),
    }
    for name, (plain, unit, names) in cases.items():
        write_numpy(tmp_path / name, plain, unit)
        assert set(load_file(tmp_path / name)) == {"0.weight", "0.bias", *names}
