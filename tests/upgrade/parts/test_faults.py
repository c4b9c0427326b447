"""Parts on disks that are full, and of maps that are networks."""

import numpy as np
import pytest
import tiny_galleries as tiny
from disks import disk
from kill_parts import translate
from tiny_pairs import sets

from fct_jax import cli, upgrade
from fct_jax.upgrade.migration.upgrade import Upgrade

COUNT = 4000


def results(workdir) -> dict[str, bytes]:
    found = {p.name: p.read_bytes() for p in (workdir / "gallery").iterdir()}
    return {**found, "uncertainty": (workdir / "uncertainty.npy").read_bytes()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["set", "parquet"])
def test_a_disk_that_is_full(tmp_path, form, capsys):
    """Whenever it is full, one line says so, and the same parts go on once there is room."""
    ids, old, _ = tiny.vectors(COUNT)
    path = tiny.write_gallery(form, tmp_path / "old", ids, old)
    tiny.plain_map().save(tmp_path / "map")
    translate(path, tmp_path / "whole")
    used = sum(f.stat().st_size for f in (tmp_path / "whole").rglob("*") if f.is_file())
    failed = 0
    for number, share in enumerate((0.2, 0.5, 1, 2)):
        with disk(tmp_path / f"disk{number}", int(used * share)) as change:
            workdir = tmp_path / f"disk{number}" / "up"
            words = ["apply", workdir, "--map", tmp_path / "map", "--gallery", path, "--unchecked"]
            words = [str(word) for word in (*words, "--batch-size", 16, "--part")]
            codes = [cli.main([*words, f"{part}/3"]) for part in (1, 2, 3)]
            said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
            assert len(said) == sum(codes)
            assert all("No space left on device" in x or "GB free, but" in x for x in said), said
            failed += sum(codes)
            change("size=64m")
            assert [cli.main([*words, f"{part}/3"]) for part in (1, 2, 3)] == [0, 0, 0]
            assert results(workdir) == results(tmp_path / "whole")
    assert failed > 1


@pytest.mark.slow
def test_a_network(tmp_path):
    """Files end inside blocks, and the last block is short: a network pads it to one size."""
    old, new = sets()
    mapping = upgrade.fit(old, new, method="fct", inner_dim=16, epochs=2)
    count = 1000
    values = np.random.default_rng(0).standard_normal((count, old.dim)).astype(np.float32)
    folder = tmp_path / "old"
    folder.mkdir()
    tiny.write_parquet(folder, np.arange(count), values, sizes=(41, 111, 7, 300, 90))

    def apply(workdir, part=None):
        given = {"batch_size": 64, "unchecked": True, "part": part}
        return Upgrade(workdir).apply(mapping, folder, **given)

    apply(tmp_path / "one")
    for number in (3, 1, 2):
        apply(tmp_path / "up", f"{number}/3")
    assert results(tmp_path / "up") == results(tmp_path / "one")
