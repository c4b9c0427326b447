"""Files in which people keep vectors are galleries, with their rows and ids."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny
from gallery_files import check, csv, laion, quoted, random, write_vecs

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.galleries.columns import numpy_dtype
from fct_jax.upgrade.galleries.embedding_set import SetTarget


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, dtype, order):
    values = np.asarray(random() * 20, dtype, order=order)
    np.save(tmp_path / "x.npy", values)
    gallery = check(open_gallery(tmp_path / "x.npy"), values.astype(np.float32))
    assert gallery.dtype == (dtype if np.dtype(dtype).kind == "f" else np.float32)
    (tmp_path / "x.meta.json").write_text('{"model": "m"}')
    ids = np.array([f"é{i}".encode() for i in range(30)])
    np.save(tmp_path / "x_ids.npy", ids)
    gallery = check(
        open_gallery(tmp_path / "x.npy"), values.astype(np.float32), np.char.decode(ids, "utf-8")
    )
    assert gallery.meta == {"model": "m"}


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_an_upgrade_of_a_plain_file(tmp_path, form, capsys):
    """A .npy file works as a gallery; the new gallery is an EmbeddingSet."""
    ids, old, new = tiny.vectors(200)
    tiny.as_set(tmp_path / "new", new, ids, fingerprint="new-model")
    np.save(tmp_path / "old.npy", old)
    np.save(tmp_path / "old_ids.npy", ids)
    np.savez(tmp_path / "old.npz", vectors=old, ids=ids)
    paths = {form: tmp_path / f"old.{form}"}
    made = tiny.upgraded((paths, tmp_path / "new", ids, old, new), form, tmp_path / "w")
    assert made.form == "set" and made.versions.all()
    np.testing.assert_array_equal(made.read(0, 200), new)
    np.testing.assert_array_equal(EmbeddingSet.read(tmp_path / "w" / "gallery").ids, ids)
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be written; the new gallery is an EmbeddingSet" in said


def test_npy_of_no_use(tmp_path):
    path = tmp_path / "x.npy"
    for values, message in (
        (np.zeros((2, 3, 4), np.float32), "several vectors per item"),
        (np.zeros(3, np.float32), r"must hold numbers \(N, D\), not float32 \(3,\)"),
        (np.array([["a", "b"]]), "must hold numbers"),
        (np.zeros((0, 3), np.float32), "is empty"),
    ):
        np.save(path, values)
        with pytest.raises(UserError, match=message):
            open_gallery(path)
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(UserError, match="it holds Python objects"):
        open_gallery(path)
    path.write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(UserError, match="x.npy cannot be read"):
        open_gallery(path)
    np.save(path, random())
    np.save(tmp_path / "x_ids.npy", np.arange(29))
    with pytest.raises(UserError, match=r"ids have shape \(29,\), but there are 30 vectors"):
        open_gallery(path)
    np.save(tmp_path / "x_ids.npy", np.arange(30) // 2)
    with pytest.raises(UserError, match="id 0 occurs more than once"):
        open_gallery(path)


def test_npz(tmp_path):
    path, values = tmp_path / "x.npz", random()
    np.savez_compressed(path, other=values[:, :2], emb=values, name=np.arange(30) + 5)
    with pytest.raises(UserError, match="any of other, emb may hold the vectors; say which"):
        open_gallery(path)
    check(open_gallery(path, vector_column="emb"), values)
    check(open_gallery(path, vector_column="emb", id_column="name"), values, np.arange(30) + 5)
    with pytest.raises(UserError, match="unknown array of ids 'nam'; did you mean 'name'"):
        open_gallery(path, vector_column="emb", id_column="nam")
    np.savez(path, embeddings=values, ids=[f"i{i}" for i in range(30)])
    check(open_gallery(path), values, [f"i{i}" for i in range(30)])


def test_numbered_shards(tmp_path):
    """Shard 2 comes before shard 10, and takes its ids from its own metadata (P6)."""
    values = laion(tmp_path / "g")
    ids = [f"{r:09d}" for r in range(36)]
    for where in (tmp_path / "g", tmp_path / "g" / "img_emb"):
        gallery = check(open_gallery(where), values, ids)
        assert gallery.form == "shards" and gallery.dtype == np.float16
        assert gallery.place(35) == "img_emb_11.npy, row 2"
    (tmp_path / "g" / "text_emb").mkdir()
    np.save(tmp_path / "g" / "text_emb" / "text_emb_0.npy", values)
    with pytest.raises(UserError, match="img_emb, text_emb hold vectors; say which"):
        open_gallery(tmp_path / "g")
    check(open_gallery(tmp_path / "g", vector_column="img_emb"), values, ids)


def test_shards_that_do_not_fit(tmp_path):
    values = laion(tmp_path / "g", key=False)
    check(open_gallery(tmp_path / "g"), values)  # its ids are row numbers
    laion(tmp_path / "h")
    metadata = tmp_path / "h" / "metadata"
    (metadata / "metadata_7.parquet").rename(metadata / "metadata_70.parquet")
    with pytest.raises(UserError, match="img_emb_7.npy has no metadata file of the same number in"):
        open_gallery(tmp_path / "h")
    table = pa.table({"key": ["a"]})
    pq.write_table(table, metadata / "metadata_7.parquet")
    with pytest.raises(UserError, match="metadata_7.parquet has 1 rows, but img_emb_7.npy has 3"):
        open_gallery(tmp_path / "h")
    (metadata / "metadata_7.parquet").unlink()
    (metadata / "metadata_70.parquet").rename(metadata / "metadata_7.parquet")
    np.save(tmp_path / "h" / "img_emb" / "img_emb_3.npy", values[:3, :2])
    with pytest.raises(UserError, match=r"img_emb_3.npy has dimension 2, but img_emb_0.npy has 4"):
        open_gallery(tmp_path / "h" / "img_emb")


@pytest.mark.parametrize("ending", [".fvecs", ".bvecs", ".ivecs", ".fbin", ".u8bin", ".i8bin"])
def test_files_of_benchmarks(tmp_path, ending):
    values = np.abs(random(30, 5) * 40) if "b" in ending else random(30, 5) * 40
    expected = write_vecs(tmp_path / f"x{ending}", values)
    check(open_gallery(tmp_path / f"x{ending}"), expected)


def test_headers_that_do_not_fit(tmp_path):
    """Fvecs and fbin that are mixed up (P16), and truncated files, are refused."""
    write_vecs(tmp_path / "x.fbin", random(30, 5))
    (tmp_path / "x.fbin").rename(tmp_path / "x.fvecs")
    with pytest.raises(UserError, match=r"header \(30, 5\); it may be a .fbin file"):
        open_gallery(tmp_path / "x.fvecs")
    write_vecs(tmp_path / "y.fvecs", random(30, 5))
    (tmp_path / "y.fvecs").rename(tmp_path / "y.fbin")
    with pytest.raises(UserError, match=r"it may be a .fvecs or .bvecs or .ivecs file"):
        open_gallery(tmp_path / "y.fbin")
    write_vecs(tmp_path / "z.fbin", random(30, 5))
    (tmp_path / "z.fbin").write_bytes((tmp_path / "z.fbin").read_bytes()[:-3])
    with pytest.raises(UserError, match="it may be cut off"):
        open_gallery(tmp_path / "z.fbin")
    write_vecs(tmp_path / "w.fvecs", random(30, 5))
    data = bytearray((tmp_path / "w.fvecs").read_bytes())
    data[24 * 7 : 24 * 7 + 4] = b"\1\0\0\0"
    (tmp_path / "w.fvecs").write_bytes(data)
    with pytest.raises(UserError, match="row 7 has dimension 1, but the first row has 5"):
        open_gallery(tmp_path / "w.fvecs").read(0, 30)
    (tmp_path / "v.fbin").write_bytes(b"abc")
    with pytest.raises(UserError, match="it has 3 bytes"):
        open_gallery(tmp_path / "v.fbin")


def test_hdf5(tmp_path):
    """Ann-benchmarks' layout and others are read."""
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    values = random()
    with h5py.File(tmp_path / "glove.hdf5", "w") as file:
        file["train"], file["test"], file["neighbors"] = values, values[:3], np.zeros((3, 2), int)
        file.attrs["distance"] = "angular"
    gallery = check(open_gallery(tmp_path / "glove.hdf5"), values)
    assert gallery.meta == {"metric": "cosine"}
    assert len(open_gallery(tmp_path / "glove.hdf5", vector_column="test")) == 3
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/emb"], file["a/names"] = values.astype(np.float16), [f"é{i}" for i in range(30)]
        file["b"] = values
    with pytest.raises(UserError, match="any of a/emb, b may hold the vectors; say which"):
        open_gallery(tmp_path / "x.h5")
    gallery = open_gallery(tmp_path / "x.h5", vector_column="a/emb", id_column="a/names")
    check(gallery, values.astype(np.float16).astype(np.float32), [f"é{i}" for i in range(30)])
    (tmp_path / "y.h5").write_text("no")
    with pytest.raises(UserError, match="y.h5 cannot be read"):
        open_gallery(tmp_path / "y.h5")


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_csv(tmp_path, name, brackets):
    """The output of COPY and to_csv is read (P1): a vector is the text of a cell."""
    values = random(1000, 16)
    rows = [f'{7 * i},"a, ""b""",{quoted(v, brackets)}' for i, v in enumerate(values)]
    path = csv(tmp_path / name, "id,title,embedding", rows)
    gallery = check(open_gallery(path), values, np.arange(1000) * 7)
    assert gallery.form == "text" and gallery.ids.dtype == np.int64
    assert gallery.dtype == np.float32 and gallery.vector_column == "embedding"


def test_csv_of_other_kinds(tmp_path):
    values = random(30, 9)
    wide = [";".join([f"k{i}", *map(repr, v.tolist()), "1.5"]) for i, v in enumerate(values)]
    header = ";".join(["key", *(f"dim_{d}" for d in range(9)), "price"])
    check(open_gallery(csv(tmp_path / "w.csv", header, wide)), values, [f"k{i}" for i in range(30)])
    # Ids with leading zeros are text, and NumPy's text of a vector may span lines.
    rows = [f'{i:03d}\t"{v}"' for i, v in enumerate(values.round(3))]
    gallery = open_gallery(csv(tmp_path / "t.tsv", "id\tvector", rows))
    assert gallery.ids[7] == "007"
    np.testing.assert_allclose(gallery.read(0, 30), values, atol=1e-3)
    with pytest.raises(UserError, match="first line must be the names of its columns"):
        open_gallery(csv(tmp_path / "n.csv", "1,0.5,0.25", ["2,0.5,0.25"]))
    bad = ['1,"[1,2]"', "2,", '3,"[0,0]"', '4,"[1,x]"']
    gallery = open_gallery(csv(tmp_path / "b.csv", "id,vector", bad), on_bad="quarantine")
    gallery.screen(0, gallery.read(0, 4))
    assert gallery.bad.ids == [2, 3, 4] and gallery.bad.counts == {"null in 'vector'": 2, "zero": 1}


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson"])
def test_json_lines(tmp_path, name):
    values = random(1000, 16)
    lines = [
        json.dumps({"text": "é", "id": f"i{i}", "vector": v.tolist(), "more": {"a": [1]}})
        for i, v in enumerate(values)
    ]
    (tmp_path / name).write_text("\n".join(lines))
    gallery = check(open_gallery(tmp_path / name), values, [f"i{i}" for i in range(1000)])
    assert gallery.dtype == np.float32
    (tmp_path / name).write_text('{"id": 1, "vector": [1, 2]}\n{"id": 2, "vector": [0.5, 1e-3]}\n')
    np.testing.assert_array_equal(
        open_gallery(tmp_path / name).read(1, 2), np.float32([[0.5, 1e-3]])
    )
    (tmp_path / name).write_text('{"id": 1, "vector": [[1, 2]]}\n')
    with pytest.raises(UserError, match="several vectors per item"):
        open_gallery(tmp_path / name)
    (tmp_path / name).write_text('{"id": 1, "vec\n')
    with pytest.raises(UserError, match="x.* cannot be read"):
        open_gallery(tmp_path / name)


def test_folders_of_text_files(tmp_path):
    values = random(12)
    for number in range(12):
        csv(tmp_path / f"{number}.csv", "id,vector", [f"{number},{quoted(values[number])}"])
    gallery = check(open_gallery(tmp_path), values)
    assert gallery.place(11) == "11.csv, row 0"


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float16(), 4)], ids=str)
def test_hugging_face_folders(tmp_path, kind):
    """The output of save_to_disk is read (P23): Arrow streams in the order of state.json."""
    values = random(40).astype(numpy_dtype(kind.value_type))
    table = pa.table({"text": ["x"] * 40, "id": range(40), "emb": pa.array(values.tolist(), kind)})
    names = [f"data-0000{n}-of-00002.arrow" for n in range(2)]
    (tmp_path / "train").mkdir()
    for name, part in zip(names, (table[:25], table[25:]), strict=True):
        with pa.ipc.new_stream(str(tmp_path / "train" / name), table.schema) as writer:
            writer.write_table(part, max_chunksize=10)
    state = {"_data_files": [{"filename": name} for name in names]}
    (tmp_path / "train" / "state.json").write_text(json.dumps(state))
    gallery = check(open_gallery(tmp_path / "train"), values.astype(np.float32))
    assert gallery.form == "arrow" and gallery.writer is SetTarget
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match="holds the splits train, test; name one: .*/train"):
        open_gallery(tmp_path)
    pyarrow.feather.write_feather(table, str(tmp_path / "x.feather"))
    check(open_gallery(tmp_path / "x.feather"), values.astype(np.float32))
    (tmp_path / "y.arrow").write_text("no")
    with pytest.raises(UserError, match="y.arrow cannot be read"):
        open_gallery(tmp_path / "y.arrow")


def test_lance(tmp_path):
    lance = pytest.importorskip("lance", reason="the extra lance is not installed")
    values = random(50)
    table = pa.table(
        {"id": range(50), "vector": pa.array(values.tolist(), pa.list_(pa.float32(), 4))}
    )
    lance.write_dataset(table, tmp_path / "x.lance", max_rows_per_file=20)
    gallery = check(open_gallery(tmp_path / "x.lance"), values)
    assert gallery.form == "lance" and len(gallery.parts) == 3
    lance.dataset(tmp_path / "x.lance").delete("id in (3, 45)")
    check(gallery, values)  # it still has the version that was opened
    kept = np.delete(np.arange(50), [3, 45])
    check(open_gallery(tmp_path / "x.lance"), values[kept], kept)
