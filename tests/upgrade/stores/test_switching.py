"""Switching to and fro: calibrations, and rows that the application writes in between."""

import json

import numpy as np
import pytest
from store_apps import COUNT, ids, vectors

from fct_jax import cli
from fct_jax.upgrade import calibrate

STORES = ["postgres", "qdrant", "lance", "milvus"]


def run(*words) -> int:
    """Run a command; return its exit code."""
    return cli.main([str(word) for word in words])


@pytest.fixture(params=STORES)
def switched(request, make_app, open_store, map_folder, tmp_path):
    """Return an application whose readers follow the sibling, the upgrade and the sibling."""
    app, upgrade = make_app(request.param).filled(), tmp_path / "upgrade"
    assert run("apply", upgrade, "--map", map_folder, "--gallery", app.uri) == 0
    assert run("switch", upgrade) == 0
    return app, upgrade, open_store(open_store(app.uri).pointer().current()["store"])


def test_what_the_application_wrote_to_the_new_store_alone(switched, open_store, capsys):
    """The way back stops and lists such rows; afterwards they are still there."""
    app, upgrade, target = switched
    assert not len(target.of_app())
    changed, added = ids("int", 3, 6), ids("int", COUNT, COUNT + 4)
    rows = vectors(7, 3, target.dim)
    app.put_new(target, [*changed, *added], rows)
    assert set(target.of_app().tolist()) == {*changed, *added}
    capsys.readouterr()
    for words in (("switch", upgrade, "--back"), ("rollback", upgrade)):
        assert run(*words) == 1
        said = capsys.readouterr().err
        assert "has 3, perhaps in an older form, and lacks 4 ids" in " ".join(said.split())
    assert open_store(app.uri).pointer().current()["generation"] == 1
    lines = (upgrade / "written_by_app.jsonl").read_text().splitlines()
    listed = {row["id"]: row["in_old_store"] for row in map(json.loads, lines)}
    assert listed == {**dict.fromkeys(changed, True), **dict.fromkeys(added, False)}
    # Once the application has written them to the old store too, nothing is in the way.
    app.put(added[:2], vectors(2, 4))
    assert run("switch", upgrade, "--back") == 1
    assert run("switch", upgrade, "--back", "--leave") == 0
    assert open_store(app.uri).pointer().current()["store"] == app.uri
    have = app.rows(target)
    np.testing.assert_allclose([have[i] for i in (*changed, *added)], rows, rtol=1e-5, atol=1e-6)
    app.put(added[2:], vectors(2, 5))
    assert run("switch", upgrade) == 0
    assert run("switch", upgrade, "--back") == 0
    have = app.rows(target)
    np.testing.assert_allclose([have[i] for i in (*changed, *added)], rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("switched", ["postgres"], indirect=True)
def test_a_calibration_is_added_after_the_switch(switched, open_store, tmp_path):
    app, upgrade, target = switched
    pointer = open_store(app.uri).pointer()
    for number in (1, 2):
        rows = vectors(300, number)
        made = calibrate(rows, rows[:, ::-1].copy()).save(tmp_path / f"made{number}")
        for _ in range(2):  # the second call changes nothing
            assert run("switch", upgrade, "--calibration", made) == 0
            now = pointer.current()
            assert (now["store"], now["calibration"]) == (str(target.uri), str(made))
            assert now["generation"] == number + 1
        assert run("switch", upgrade) == 0  # keeps it
        assert pointer.current() == now
    assert run("switch", upgrade, "--back") == 0
    assert pointer.current()["store"] == app.uri
