"""The cores, hours and money that a plan prints."""

import dataclasses

import pytest
import tiny_galleries as tiny

from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.migration.estimate import estimated
from fct_jax.upgrade.migration.planning import Wanted
from fct_jax.upgrade.migration.upgrade import Upgrade

COUNT = 200


def test_what_an_upgrade_takes(tmp_path, capsys):
    ids, old, new = tiny.vectors(COUNT)
    path = tiny.as_set(tmp_path / "old", old, ids)
    wanted = Wanted(items_per_second=10.0, cost_per_1000=2.0, cost_per_core_hour=3.0)
    found = estimated(open_gallery(path), tiny.plain_map(), 64, 90, wanted)
    assert found.vectors == COUNT and found.sample >= 64 and found.cpu > 0
    assert (found.read, found.written) == (old.shape[1] * 4, new.shape[1] * 4 + 4)
    assert found.core_hours == pytest.approx(COUNT * found.cpu / 3600)
    shown = dataclasses.replace(found, vectors=10**8, cpu=7.2e-5, cores=4, items=90_000)
    # 10⁸ × 72 µs are 2 core hours, so half an hour of 4 cores; 90,000 items are 2.5 hours.
    assert shown.table().rows == [
        ["translate", "100,000,000", "2", "4", "0.5", "6.00"],
        ["re-embed", "90,000", "", "", "2.5", "180.00"],
    ]
    dataclasses.replace(shown, read=768, written=772).show()
    said = " ".join(capsys.readouterr().err.split())
    assert "with 76.8 GB that are read and 77.2 GB that are written" in said
    Upgrade(tmp_path / "up").plan(tiny.plain_map(), path, items_per_second=5.0)
    said = " ".join(capsys.readouterr().err.split())
    assert "What it takes" in said and "a core hour costs 0.05" in said
    assert "Give cost_per_1000 of the new model" in said
