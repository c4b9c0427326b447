"""Files in a bucket of a real S3 server: read in place, sampled, and upgraded to a folder."""

import io
import json
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patience import LONG

from fct_jax import cli
from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
servers = pytest.importorskip("servers", reason="servers of the stores' tests")

COUNT, OLD, NEW = 1200, 8, 6


@pytest.fixture(scope="module")
def put(tmp_path_factory):
    """Return a function that puts an object into the bucket ``vectors`` of a running server."""
    with (
        servers.seaweedfs(tmp_path_factory.mktemp("s3"), "vectors") as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        url = environment["AWS_ENDPOINT"]
        for name, value in {**environment, "AWS_ENDPOINT_URL": url}.items():
            patch.setenv(name, value)

        def put(key, data):
            asked = urllib.request.Request(f"{url}/vectors/{key}", data=data, method="PUT")
            urllib.request.urlopen(asked, timeout=LONG).close()

        yield put


def parquet(**columns) -> bytes:
    """Return a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def npy(values) -> bytes:
    """Return a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def put_parquet(put, folder, ids, values, files=12):
    for number, rows in enumerate(np.array_split(np.arange(len(ids)), files)):
        lists = pa.array(values[rows].tolist(), pa.list_(pa.float32()))
        put(f"{folder}/part-{number}.parquet", parquet(id=ids[rows], vector=lists))


def put_shards(put, folder, ids, values, files=12):
    """Put LAION's layout."""
    for number, rows in enumerate(np.array_split(np.arange(len(ids)), files)):
        put(f"{folder}/img_emb/img_emb_{number}.npy", npy(values[rows]))
        put(f"{folder}/metadata/metadata_{number}.parquet", parquet(key=ids[rows]))


def spaces(count):
    """Return the vectors of the same items by two models."""
    rng = np.random.default_rng(0)
    old = rng.standard_normal((count, OLD)).astype(np.float32)
    new = old @ rng.standard_normal((OLD, NEW)) + 0.1 * rng.standard_normal((count, NEW))
    new = new / np.linalg.norm(new, axis=1, keepdims=True)
    return old / np.linalg.norm(old, axis=1, keepdims=True), new.astype(np.float32)


def test_a_bucket(put, tmp_path):
    values = np.random.default_rng(0).standard_normal((120, 4)).astype(np.float32)
    put_parquet(put, "g", np.arange(120), values)
    put("g/_meta.json", b'{"model": "m"}')
    gallery = open_gallery("s3://vectors/g")
    assert gallery.meta == {"model": "m"} and gallery.name == "s3://vectors/g"
    np.testing.assert_array_equal(gallery.ids, np.arange(120))
    np.testing.assert_array_equal(np.concatenate([v for _, v in gallery.blocks(50)]), values)
    target = gallery.writer(gallery, tmp_path)
    target.create(4, "l2")
    target.open(4)
    target.vectors.write(0, values * 2)
    assert target.publish() == 12
    target.describe({"state": "finished"})
    target.complete()
    target.close()
    with pytest.raises(UserError, match="s3://vectors/none: nothing is there"):
        open_gallery("s3://vectors/none")
    np.testing.assert_array_equal(open_gallery(tmp_path / "gallery").read(0, 120), values * 2)


def test_shards_in_a_bucket(put):
    values = np.random.default_rng(1).standard_normal((120, 5)).astype(np.float16)
    put_shards(put, "laion", np.array([f"{n:05d}" for n in range(120)]), values)
    for where in ("s3://vectors/laion", "s3://vectors/laion/img_emb"):
        gallery = open_gallery(where)
        assert gallery.form == "shards" and gallery.name == where
        assert gallery.dtype == np.float16
        assert gallery.ids.tolist() == [f"{n:05d}" for n in range(120)]
        np.testing.assert_array_equal(gallery.read(0, 120), values.astype(np.float32))
        np.testing.assert_array_equal(gallery.rows([119, 0, 37]), values[[119, 0, 37]])
        assert gallery.place(11) == "img_emb_1.npy, row 1"
    for name, data, message in (
        ("cut", npy(values)[:-100], "is cut off"),
        ("odd", b"not an array at all", "cannot be read"),
        ("text", npy(np.array(["a"] * 3)), "must hold numbers"),
        ("wide", npy(np.asfortranarray(values)), "Fortran"),
    ):
        put(f"{name}/x_0.npy", data)
        with pytest.raises(UserError, match=message) as error:
            open_gallery(f"s3://vectors/{name}").read(0, 120)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", [put_parquet, put_shards])
def test_every_command_on_a_bucket(put, layout, tmp_path, capsys):
    """doctor, fit, assess, plan and apply name files in a bucket as gallery and as sample."""
    old, new = spaces(COUNT)
    ids, place = np.arange(COUNT) * 3, layout.__name__
    layout(put, f"{place}/old", ids, old)
    layout(put, f"{place}/new", ids[::2], new[::2])
    where = {name: f"s3://vectors/{place}/{name}" for name in ("old", "new")}

    def told(*words):
        capsys.readouterr()
        assert cli.main([*map(str, words), "--json"]) in (cli.DONE, cli.LOOK), words
        return json.loads(capsys.readouterr().out)

    assert told("doctor", where["old"])["rows"] == COUNT
    made = told("fit", *where.values(), "--method", "ridge", "--out", tmp_path / "map")
    assert made["pairs"] + made["pairs_held_out"] == COUNT // 2
    if layout is put_shards:
        found = told("assess", *where.values(), "--resamples", 50, "--max-queries", 100)
        assert found["advice"]
    upgrade = tmp_path / "upgrade"
    words = ("--map", tmp_path / "map", "--gallery", where["old"], "--budget-items", 100)
    assert told("plan", upgrade, *words)["items"] == 100
    told("apply", upgrade, "--reembed", where["new"])
    found = told("status", upgrade)
    assert (found["count"], found["translated"]) == (COUNT, COUNT)
    assert found["reembedded"] + found["unembedded"] == 100 and found["reembedded"] > 20
    gallery = open_gallery(upgrade / "gallery", unfinished=True)
    rows = np.flatnonzero(gallery.versions == 1)
    np.testing.assert_allclose(gallery.rows(rows), new[rows], rtol=1e-6)
    secret = "hunter2-Zq9"
    files = [path for path in upgrade.rglob("*") if path.is_file()]
    assert not any(secret.encode() in path.read_bytes() for path in files)
