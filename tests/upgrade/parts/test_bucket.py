"""Parts in a bucket of a real S3 server: hosts that share nothing else, and what follows."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_galleries as tiny
from patience import LONG

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.migration.upgrade import Upgrade

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
servers = pytest.importorskip("servers", reason="servers of the stores' tests")
REPOSITORY = Path(__file__).parents[3]
HELPERS = REPOSITORY / "tests" / "helpers"
COUNT = 3000
OLD, NEW = "s3://vectors/old", "s3://vectors/new"


class Bucket:
    """The bucket, as another program sees it."""

    def __init__(self):
        import obstore.store

        self._client = obstore
        self._store = obstore.store.from_url("s3://vectors")

    def put(self, folder: Path, name: str) -> None:
        for path in folder.iterdir():
            self._client.put(self._store, f"{name}/{path.name}", path)

    def names(self, prefix: str) -> list[str]:
        return [e["path"] for page in self._client.list(self._store, prefix) for e in page]

    def tree(self, name: str) -> dict[str, bytes]:
        """Return the objects that readers of a gallery see."""
        return {
            path.removeprefix(f"{name}/"): self._client.get(self._store, path).bytes().to_bytes()
            for path in self.names(name)
            if "/_parts/" not in path
        }


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    pytest.importorskip("obstore", reason="obstore: pip install 'fct_jax[s3]'")
    (tmp_path / "s3").mkdir()
    with servers.seaweedfs(tmp_path / "s3", "vectors") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", environment["AWS_ENDPOINT"])
        yield Bucket()


def begun(workdir, *words):
    """Start ``fct-jax apply`` as on a host that shares its directory with none."""
    given = ["--map", "slow_model:translate", "--gallery", OLD, "--output", NEW, "--unchecked"]
    given += ["--batch-size", "16", *words]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "fct_jax", "apply", str(workdir), *given],
        env={**os.environ, "PYTHONPATH": f"{HELPERS}{os.pathsep}{REPOSITORY}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_hosts(bucket, tmp_path, monkeypatch):
    """Two hosts make the same part at once, one is killed; the bytes are those of one process."""
    monkeypatch.syspath_prepend(HELPERS)
    ids, old, new = tiny.vectors(COUNT)
    old[77] = np.nan
    folder = tmp_path / "old"
    folder.mkdir()
    tiny.write_parquet(folder, ids, old, sizes=(70, 0, 130, *[60] * 40))
    bucket.put(folder, "old")
    one = Upgrade(tmp_path / "one")
    one.apply("slow_model:translate", OLD, batch_size=16, unchecked=True)

    hosts = [begun(tmp_path / f"host{n}", "--part", "1/2") for n in (1, 2)]

    def pieces():
        names = bucket.names("new/_parts")
        return sum("piece-" in name and name.endswith(".json") for name in names)

    begin = time.monotonic()
    while pieces() < 3 and all(host.poll() is None for host in hosts):
        assert time.monotonic() - begin < LONG
        time.sleep(0.1)
    hosts[0].kill()
    hosts[0].communicate()
    said, _ = hosts[1].communicate(timeout=LONG)
    assert hosts[1].returncode == 0, said
    status = Upgrade(tmp_path / "host2").status()
    assert status.state == "translating" and 0 < status.pieces.done < status.pieces.count
    with pytest.raises(UserError, match="unfinished gallery"):
        open_gallery(NEW)
    # Both hosts make the other part, and both may find that everything is there.
    hosts = [begun(tmp_path / f"host{n}", "--part", "2/2") for n in (1, 2)]
    said = [host.communicate(timeout=LONG)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    made = bucket.tree("new")
    whole = {str(p.relative_to(tmp_path / "one/gallery")): p.read_bytes()
             for p in (tmp_path / "one/gallery").rglob("*") if p.is_file()}  # fmt: skip
    assert made == whole
    status = [Upgrade(tmp_path / f"host{n}").status() for n in (1, 2)]
    assert [s.state for s in status] == ["translated"] * 2
    # One of them goes on: it has the journal.
    owner = next(n for n in (1, 2) if (tmp_path / f"host{n}" / "uncertainty.npy").exists()
                 or status[n - 1].pieces is None)  # fmt: skip
    tiny.as_set(tmp_path / "new", new, ids)
    for upgrade in (Upgrade(tmp_path / f"host{owner}"), one):
        upgrade.apply(reembed=str(tmp_path / "new"), batch_items=500, max_batches=2)
        upgrade.rollback(1)
    gallery, ours = open_gallery(NEW, unfinished=True), tmp_path / "one" / "gallery"
    assert gallery.versions.sum() == 500
    np.testing.assert_array_equal(
        gallery.read(0, COUNT),
        open_gallery(ours, unfinished=True).read(0, COUNT),
    )
    other = Upgrade(tmp_path / "host9")
    with pytest.raises(UserError, match="was finished by"):
        other.apply("slow_model:translate", OLD, output=NEW, batch_size=16, unchecked=True)


def test_mistakes_and_types(bucket, tmp_path):
    ids, old, _ = tiny.vectors(300)
    folder = tiny.write_gallery("parquet", tmp_path / "old", ids, old)
    bucket.put(folder, "old")
    given = {"batch_size": 16, "unchecked": True}
    matrix = np.random.default_rng(4).standard_normal((tiny.OLD_DIM, 8)).astype(np.float32)
    for dtype in ("int8", "binary"):  # the second host takes the scales of the first
        mapping = tiny.plain_map(matrix=matrix, known=False)
        one, output = tmp_path / f"one-{dtype}", f"s3://vectors/{dtype}"
        Upgrade(one).apply(mapping, OLD, dtype=dtype, **given)
        for part in ("2/2", "1/2"):
            host = Upgrade(tmp_path / f"{dtype}-{part[0]}")
            host.apply(mapping, OLD, output=output, part=part, dtype=dtype, **given)
        assert bucket.tree(dtype) == tiny.tree(one / "gallery")
    with pytest.raises(UserError, match="packs eight dimensions into a byte"):
        Upgrade(tmp_path / "up").apply(tiny.plain_map(), OLD, output=NEW, dtype="binary", **given)
    for output, expected in (
        ("s3://vectors/old/new", "is not apart from the gallery"),
        ("s3://nowhere/new", "s3://nowhere/new: "),
        ("somewhere", "is not the URI of an object store"),
        ("az://vectors/new", "is not the URI of an object store, s3://… or gs://…"),
    ):
        with pytest.raises(UserError, match=expected):
            Upgrade(tmp_path / "up").apply(tiny.plain_map(), OLD, output=output, **given)
    bucket.put(folder, "taken")
    with pytest.raises(UserError, match=r"s3://vectors/taken holds part-0.parquet already"):
        Upgrade(tmp_path / "up").apply(tiny.plain_map(), OLD, output="s3://vectors/taken", **given)
    path = tiny.write_gallery("set", tmp_path / "set", ids, old)
    with pytest.raises(UserError, match="only a Parquet gallery is written to an object store"):
        Upgrade(tmp_path / "set-up").apply(tiny.plain_map(), path, output=NEW, **given)
    # Files that change between parts are noticed by their size and time (in whole seconds here).
    Upgrade(tmp_path / "a").apply(tiny.plain_map(), OLD, output=NEW, part="1/3", **given)
    tiny.write_parquet(folder, ids[:-1], old[:-1])
    bucket.put(folder, "old")
    with pytest.raises(UserError, match="has changed since the first part began"):
        Upgrade(tmp_path / "b").apply(tiny.plain_map(), OLD, output=NEW, part="2/3", **given)
