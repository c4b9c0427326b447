"""Columns of tables are named alike wherever a command takes a gallery or a sample."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny

from fct_jax import cli
from fct_jax.errors import UserError
from fct_jax.storage.named import vectors_of
from fct_jax.upgrade.galleries.base import open_gallery, split_columns
from fct_jax.upgrade.migration.upgrade import Upgrade

COUNT = 300
KEYS = ["--id-column", "key"]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Write export.parquet with two id columns and three of vectors, and queries in q.parquet."""
    monkeypatch.chdir(tmp_path)
    ids, old, new = tiny.vectors(COUNT)
    floats = pa.list_(pa.float32())
    for name, rows in (("export.parquet", slice(None)), ("q.parquet", slice(0, 50))):
        columns = {"key": ids[rows], "parent": ids[rows] // 2}
        for column, values in (("emb_0", old), ("emb_1", new), ("thumb", old[:, :2])):
            columns[column] = pa.array(list(values[rows]), floats)
        pq.write_table(pa.table(columns), name)
    np.save("judged.npy", ids[:50])
    return ids, old, new


def ambiguous(words, capsys, what="say which"):
    """Check that the command without column names ends with one line that asks for them."""
    assert cli.main(words) == 1
    assert what in " ".join(capsys.readouterr().err.split())


def test_doctor(tables, capsys):
    ambiguous(["doctor", "export.parquet"], capsys)
    assert cli.main(["doctor", "export.parquet", *KEYS, "--vector-column", "emb_1"]) == 0
    assert "300 vectors of 5 dimensions" in capsys.readouterr().out
    assert cli.main(["doctor", "export.parquet?id=key&vector=thumb"]) == 0
    assert "300 vectors of 2 dimensions" in capsys.readouterr().out
    ambiguous(["doctor", "export.parquet", *KEYS, "--vector-column", "emb_2"], capsys,
              "unknown column of vectors 'emb_2'; did you mean 'emb_")  # fmt: skip


@pytest.mark.slow
def test_fit_assess_plan_and_apply(tables, capsys):
    """One export with old and new vectors goes through all commands, from first to last."""
    ids, _, new = tables
    pair, both = ["export.parquet", "export.parquet"], ["--vector-column", "emb_0,emb_1"]
    ambiguous(["fit", *pair, "--out", "map"], capsys)
    assert cli.main(["fit", *pair, *KEYS, *both, "--method", "ridge", "--out", "map"]) == 0
    queries = ["--query-old", "q.parquet", "--query-new", "q.parquet", "--judged", "judged.npy"]
    words = ["assess", *pair, *queries, "--resamples", "50"]
    ambiguous(words, capsys)
    assert cli.main([*words, *KEYS, *both]) in (0, 2)
    given = ["up", "--map", "map", "--gallery", "export.parquet"]
    ambiguous(["plan", *given], capsys)
    assert cli.main(["plan", *given, *KEYS, "--vector-column", "emb_0"]) == 0
    ambiguous(["apply", "up", "--reembed", "export.parquet"], capsys)
    assert cli.main(["apply", "up", "--reembed", "export.parquet?id=key&vector=emb_1"]) == 0
    made = open_gallery("up/gallery", id_column="key", vector_column="emb_0")
    np.testing.assert_array_equal(made.ids, ids)
    np.testing.assert_array_equal(made.read(0, COUNT), new)
    words = ["apply", "up2", "--map", "map", "--gallery", "export.parquet?id=key&vector=emb_0"]
    assert cli.main([*words, "--reembed", "export.parquet?id=key&vector=emb_1"]) == 0
    assert Upgrade("up2").status().state == "finished"


def test_orders(tables, capsys):
    cli.main(["fit", *["export.parquet"] * 2, *KEYS, "--vector-column", "emb_0,emb_1",
              "--method", "ridge", "--out", "map"])  # fmt: skip
    words = ["compare", "orders", "map", *["export.parquet"] * 2, "--orders", "uncertainty,random"]
    ambiguous(words, capsys)
    assert cli.main([*words, *KEYS, "--vector-column", "emb_0,emb_1"]) == 0


def test_columns_in_a_name(tables):
    assert len(open_gallery("parquet@export.parquet?id=key&vector=thumb")) == COUNT
    assert vectors_of("export.parquet?id=key&vector=emb_1").dim == 5
    kept = "s3://b/g?region=x&endpoint_override=h"
    assert split_columns(f"{kept}&vector=v") == (kept, {"id": None, "vector": "v"})
    assert split_columns(kept) == (kept, {"id": None, "vector": None})
    with pytest.raises(UserError, match="unknown column of ids 'kez'; did you mean 'key'"):
        open_gallery("export.parquet?id=kez&vector=thumb")
    with pytest.raises(UserError, match="does not exist|nothing is there"):
        vectors_of("exports.parquet?id=key")
