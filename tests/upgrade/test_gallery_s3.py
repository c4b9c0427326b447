"""Parquet in a bucket of a real S3 server: read in place, and upgraded to a folder."""

import io
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
servers = pytest.importorskip("servers", reason="servers of the stores' tests")


def test_a_bucket(tmp_path, monkeypatch):
    values = np.random.default_rng(0).standard_normal((120, 4)).astype(np.float32)
    (tmp_path / "s3").mkdir()
    with servers.seaweedfs(tmp_path / "s3", "vectors") as environment:
        url = environment["AWS_ENDPOINT"]
        for name, value in {**environment, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)

        def put(key, data):
            asked = urllib.request.Request(f"{url}/vectors/{key}", data=data, method="PUT")
            urllib.request.urlopen(asked, timeout=30).close()

        for number in range(12):
            rows = np.arange(number * 10, number * 10 + 10)
            lists = pa.array(values[rows].tolist(), pa.list_(pa.float32()))
            buffer = io.BytesIO()
            pq.write_table(pa.table({"id": rows, "vector": lists}), buffer)
            put(f"g/part-{number}.parquet", buffer.getvalue())
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
