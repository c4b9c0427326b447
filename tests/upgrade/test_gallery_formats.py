"""The files that people keep vectors in are galleries, with the rows and ids that they hold."""

import gzip
import json

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.named import vectors_of
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.galleries.embedding_set import SetTarget


def random(count=30, dim=4):
    return np.random.default_rng(count).standard_normal((count, dim)).astype(np.float32)


def check(gallery, values, ids=None):
    """Every row, in one piece and in others."""
    count = len(values)
    np.testing.assert_array_equal(gallery.ids, np.arange(count) if ids is None else ids)
    np.testing.assert_array_equal(gallery.read(0, count), values)
    np.testing.assert_array_equal(gallery.rows([count - 1, 0, 3]), values[[count - 1, 0, 3]])
    np.testing.assert_array_equal(np.concatenate([v for _, v in gallery.blocks(7)]), values)
    assert gallery.dim == values.shape[1]
    return gallery


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
    """A .npy file simply works as a gallery; the new one is an EmbeddingSet."""
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
    assert "is only read; the new gallery is an EmbeddingSet" in said


def test_npy_of_no_use(tmp_path):
    path = tmp_path / "x.npy"
    for values, message in (
        (np.zeros((2, 3, 4), np.float32), "many vectors an item"),
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


def laion(root, sizes=(3,) * 12, key=True):
    """LAION's layout in as many shards; all vectors."""
    values = random(sum(sizes)).astype(np.float16)
    bounds = np.cumsum([0, *sizes])
    for folder in ("img_emb", "metadata"):
        (root / folder).mkdir(parents=True)
    for number in range(len(sizes)):
        rows = np.arange(bounds[number], bounds[number + 1])
        np.save(root / "img_emb" / f"img_emb_{number}.npy", values[rows])
        table = {"caption": ["x"] * len(rows), "key": [f"{r:09d}" for r in rows]}
        if not key:
            table = {"similarity": [0.5] * len(rows)}
        pq.write_table(pa.table(table), root / "metadata" / f"metadata_{number}.parquet")
    return values.astype(np.float32)


def test_numbered_shards(tmp_path):
    """Shard 2 is before shard 10, and its ids are those of its own metadata (P6)."""
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
    check(open_gallery(tmp_path / "g"), values)  # row numbers
    laion(tmp_path / "h")
    metadata = tmp_path / "h" / "metadata"
    (metadata / "metadata_7.parquet").rename(metadata / "metadata_70.parquet")
    with pytest.raises(UserError, match="img_emb_7.npy has no metadata of its number in"):
        open_gallery(tmp_path / "h")
    table = pa.table({"key": ["a"]})
    pq.write_table(table, metadata / "metadata_7.parquet")
    with pytest.raises(UserError, match="metadata_7.parquet has 1 rows, but img_emb_7.npy 3"):
        open_gallery(tmp_path / "h")
    (metadata / "metadata_7.parquet").unlink()
    (metadata / "metadata_70.parquet").rename(metadata / "metadata_7.parquet")
    np.save(tmp_path / "h" / "img_emb" / "img_emb_3.npy", values[:3, :2])
    with pytest.raises(UserError, match=r"img_emb_3.npy has dimension 2, but img_emb_0.npy 4"):
        open_gallery(tmp_path / "h" / "img_emb")


def write_vecs(path, values):
    """A file of the kind that its ending names."""
    kinds = {".fvecs": "<f4", ".bvecs": "u1", ".ivecs": "<i4", ".fbin": "<f4", ".u8bin": "u1"}
    values = values.astype({**kinds, ".i8bin": "i1"}[path.suffix])
    count, dim = values.shape
    if path.suffix.endswith("vecs"):
        heads = np.full((count, 1), dim, "<i4")
        path.write_bytes(
            b"".join(h.tobytes() + v.tobytes() for h, v in zip(heads, values, strict=True))
        )
    else:
        path.write_bytes(np.array([count, dim], "<u4").tobytes() + values.tobytes())
    return values.astype(np.float32)


@pytest.mark.parametrize("ending", [".fvecs", ".bvecs", ".ivecs", ".fbin", ".u8bin", ".i8bin"])
def test_files_of_benchmarks(tmp_path, ending):
    values = np.abs(random(30, 5) * 40) if "b" in ending else random(30, 5) * 40
    expected = write_vecs(tmp_path / f"x{ending}", values)
    check(open_gallery(tmp_path / f"x{ending}"), expected)


def test_headers_that_do_not_fit(tmp_path):
    """Fvecs and fbin mixed up (P16), and files that are cut off."""
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
    with pytest.raises(UserError, match="row 7 says that it has dimension 1, the first row 5"):
        open_gallery(tmp_path / "w.fvecs").read(0, 30)
    (tmp_path / "v.fbin").write_bytes(b"abc")
    with pytest.raises(UserError, match="it has 3 bytes"):
        open_gallery(tmp_path / "v.fbin")


def test_hdf5(tmp_path):
    """Ann-benchmarks' layout, and others."""
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


def csv(path, header, rows):
    text = "\n".join([header, *rows]) + "\n"
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def quoted(row, brackets="[]"):
    return f'"{brackets[0]}{",".join(map(repr, row.tolist()))}{brackets[1]}"'


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_csv(tmp_path, name, brackets):
    """What COPY and to_csv write (P1): a vector is the text of a cell."""
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
    # Leading zeros are no numbers, and NumPy's own text may go over lines.
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
    with pytest.raises(UserError, match="many vectors an item"):
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
    """What save_to_disk writes (P23): Arrow streams, in the order of state.json."""
    values = random(40).astype(kind.value_type.to_pandas_dtype())
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
    check(gallery, values)  # the version that was opened
    kept = np.delete(np.arange(50), [3, 45])
    check(open_gallery(tmp_path / "x.lance"), values[kept], kept)


@pytest.fixture
def one_thread():
    """Faiss trains small quantisers on one thread: several would wait for each other."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def faiss_file(path, index):
    faiss.write_index(index, str(path))
    return path


@pytest.mark.parametrize("kind", ["Flat", "IDMap,Flat", "IDMap2,Flat", "HNSW8", "IVF4,Flat", "own"])
def test_faiss_indexes_that_are_exact(tmp_path, kind):
    values, ids = random(200, 8), np.random.default_rng(0).permutation(200) * 5
    index = faiss.index_factory(8, "IVF4,Flat" if kind == "own" else kind)
    index.train(values)
    has_ids = kind in ("own", "IDMap,Flat", "IDMap2,Flat")
    if has_ids:
        index.add_with_ids(values, ids)
    else:
        index.add(values)
    gallery = open_gallery(faiss_file(tmp_path / "x.faiss", index))
    order = np.argsort(ids) if kind == "own" else np.arange(200)
    check(gallery, values[order], ids[order] if has_ids else None)
    assert gallery.exact and gallery.meta["metric"] == "l2"


@pytest.mark.parametrize("kind", ["PQ4x4", "OPQ4,IVF4,PQ4x4", "IVF4,SQ8", "SQ8", "own"])
@pytest.mark.parametrize("mapped", [True, False])
def test_faiss_indexes_of_likenesses(tmp_path, kind, mapped, capsys, one_thread):
    """Quantised vectors (P7) are read as they come back, by the ids that they were added with."""
    if kind == "own" and mapped:
        pytest.skip("its own ids are the ones")
    values, ids = random(300, 8), np.random.default_rng(0).permutation(300) * 5
    index = faiss.index_factory(8, "OPQ4,IVF4,PQ4x4" if kind == "own" else kind)
    index.train(values)
    made = faiss.IndexIDMap2(index) if mapped else index
    if mapped or kind == "own":
        made.add_with_ids(values, ids)
    else:
        made.add(values)
    gallery = open_gallery(faiss_file(tmp_path / "x.faiss", made))
    assert not gallery.exact and "likenesses of the vectors" in capsys.readouterr().err
    expected = ids if mapped or kind == "own" else np.arange(300)
    assert set(gallery.ids.tolist()) == set(expected.tolist())
    rows = np.argsort(expected)[np.searchsorted(np.sort(expected), gallery.ids)]
    error = np.linalg.norm(gallery.read(0, 300) - values[rows], axis=1)
    shuffled = np.linalg.norm(gallery.read(0, 300) - values[rows[::-1]], axis=1)
    assert error.mean() < shuffled.mean() / 2


def test_faiss_inner_products(tmp_path, capsys):
    """The inner product of vectors of several lengths is no cosine (P15)."""
    values = random(100)
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    for vectors, metric in ((unit, "cosine"), (values, "ip")):
        index = faiss.IndexFlatIP(4)
        index.add(vectors)
        gallery = open_gallery(faiss_file(tmp_path / "x.faiss", index))
        assert gallery.meta["metric"] == metric
        said = capsys.readouterr().err
        assert ("its metric is called ip" in " ".join(said.split())) == (metric == "ip")
    (tmp_path / "x.meta.json").write_text('{"metric": "cosine"}')
    assert open_gallery(tmp_path / "x.faiss").meta["metric"] == "cosine"


def test_faiss_bits_are_refused(tmp_path):
    index = faiss.IndexBinaryFlat(64)
    index.add(np.zeros((3, 8), np.uint8))
    faiss.write_index_binary(index, str(tmp_path / "x.faiss"))
    with pytest.raises(UserError, match="holds vectors of bits"):
        open_gallery(tmp_path / "x.faiss")


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("dump", b"PGCOPY\n\xff\r\n\0", r"a binary COPY of PostgreSQL; COPY .* \(FORMAT csv\)"),
        ("x.db", b"SQLite format 3\0abc", "an SQLite database; export its table"),
        ("x.gz", b"\x1f\x8babc", "a gzip file; unpack it first"),
        ("x.pkl", b"\x80\x04abc", "a pickle; save its array with numpy.save"),
        ("x.bin", b"PAR1abc", "a Parquet file; call it NAME.parquet"),
        ("x.json", b'[{"id": 1}]', "JSON; one object a line"),
        ("x.safetensors", b"\1\2\3", "safetensors; save them with numpy.save"),
        ("empty", b"", "an empty file; give an EmbeddingSet"),
    ],
)
def test_what_it_looks_like_is_said(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"it looks like {said}"):
        open_gallery(tmp_path / name)


def test_files_that_may_not_be_read(tmp_path, monkeypatch):
    """A path that a person may not open is one line, in whichever form it is."""

    def refused(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(path))

    np.save(tmp_path / "x.npy", random())
    monkeypatch.setattr("pathlib.Path.is_file", refused)
    with pytest.raises(UserError, match=r"x.npy: Permission denied$"):
        open_gallery(tmp_path / "x.npy")


def test_folders_that_are_no_gallery(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="the folder is empty; give an EmbeddingSet"):
        open_gallery(tmp_path / "a")
    (tmp_path / "a" / "x.tfrecord").write_text("x")
    with pytest.raises(UserError, match="the folder holds TensorFlow records"):
        open_gallery(tmp_path / "a")
    with pytest.raises(UserError, match="nothing is there; did you mean 'a'"):
        open_gallery(tmp_path / "ab")
    (tmp_path / "a" / "x.tfrecord").rename(tmp_path / "a" / "notes.md")
    with pytest.raises(UserError, match="the folder holds notes.md, …; give an EmbeddingSet"):
        open_gallery(tmp_path / "a")
    np.save(tmp_path / "a" / "x.npy", random())
    np.savez(tmp_path / "a" / "y.npz", random())
    with pytest.raises(UserError, match="the folder holds galleries; name one: x.npy, y.npz"):
        open_gallery(tmp_path / "a")


def written(form, folder, values):
    """A gallery of the form, in a folder of its own."""
    folder.mkdir(parents=True)
    lists = pa.array(values.tolist(), pa.list_(pa.float32(), values.shape[1]))
    table = pa.table({"id": np.arange(len(values)), "vector": lists})
    if form == "npy":
        np.save(folder / "x.npy", values)
    elif form == "shards":
        for number, part in enumerate(np.array_split(values, 11)):
            np.save(folder / f"x_{number}.npy", part)
        return folder
    elif form == "vecs":
        write_vecs(folder / "x.fvecs", values)
    elif form == "hdf5":
        h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
        with h5py.File(folder / "x.hdf5", "w") as file:
            file["vectors"] = values
    elif form == "csv":
        csv(folder / "x.csv", "id,vector", [f"{i},{quoted(v)}" for i, v in enumerate(values)])
    elif form == "json":
        lines = [json.dumps({"id": i, "vector": v.tolist()}) for i, v in enumerate(values)]
        (folder / "x.jsonl").write_text("\n".join(lines))
    elif form == "arrow":
        with pa.ipc.new_file(str(folder / "x.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=37)
    elif form == "lance":
        lance = pytest.importorskip("lance", reason="the extra lance is not installed")
        lance.write_dataset(table, folder / "x.lance", max_rows_per_file=64)
    elif form == "parquet":
        pq.write_table(table, folder / "x.parquet", row_group_size=37)
    else:
        index = faiss.index_factory(values.shape[1], "IVF4,Flat")
        index.train(values)
        index.add(values)
        faiss.write_index(index, str(folder / "x.faiss"))
    return next(folder.iterdir())


KINDS = ["npy", "shards", "vecs", "hdf5", "csv", "json", "arrow", "lance", "parquet", "faiss"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """{form: open gallery} of the same vectors, opened when first asked for."""
    values, made = random(200, 3), {}

    def gallery(form):
        if form not in made:
            folder = tmp_path_factory.mktemp("forms") / form
            made[form] = open_gallery(written(form, folder, values))
        return made[form], values

    return gallery


@pytest.mark.parametrize("form", KINDS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_piece_of_any_form(opened, form, data):
    gallery, values = opened(form)
    start = data.draw(st.integers(0, 200))
    stop = data.draw(st.integers(start, 200))
    np.testing.assert_array_equal(gallery.read(start, stop), values[start:stop])
    rows = data.draw(st.lists(st.integers(0, 199), max_size=5))
    np.testing.assert_array_equal(gallery.rows(rows), values[rows].reshape(-1, 3))
    spread = gallery.spread_rows(data.draw(st.integers(1, 50)))
    assert (np.diff(spread) > 0).all() and spread[0] == 0 and spread[-1] < 200


def test_a_pass_reads_each_part_once(tmp_path, monkeypatch):
    """Blocks of any size go on where the last one ended, also from one file to the next."""
    values = random(300, 3)
    for number in range(3):
        written("parquet", tmp_path / str(number), values[number * 100 :][:100])
    gallery = open_gallery(f"{tmp_path}", duplicates="last")
    assert len(gallery) == 100  # each file has the ids 0 to 99
    gallery = open_gallery(tmp_path, id_column=None, vector_column="vector", duplicates="first")
    begun = []
    kind = type(gallery.parts[0])
    batches = kind.batches
    monkeypatch.setattr(kind, "batches", lambda p, *a: begun.append(p.name) or batches(p, *a))
    total = np.concatenate([vectors for _, vectors in gallery.blocks(17)])
    np.testing.assert_array_equal(total, values[:100])
    assert begun == ["0/x.parquet"]
    begun.clear()  # the block that was read last is still held
    whole = np.concatenate([gallery.read_stored(a, min(a + 17, 300)) for a in range(0, 300, 17)])
    np.testing.assert_array_equal(whole, values)
    assert begun == ["1/x.parquet", "2/x.parquet"]


def test_row_numbers_are_no_ids(tmp_path):
    """What has no ids says so, so that two files are not paired by chance of their order."""
    values = random()
    np.save(tmp_path / "x.npy", values)
    assert open_gallery(tmp_path / "x.npy").numbered
    np.save(tmp_path / "x_ids.npy", np.arange(30))
    assert not open_gallery(tmp_path / "x.npy").numbered
    assert open_gallery(written("vecs", tmp_path / "v", values)).numbered
    lists = pa.array(values.tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": lists}), tmp_path / "a.parquet")
    assert open_gallery(tmp_path / "a.parquet").numbered
    assert not open_gallery(written("csv", tmp_path / "c", values)).numbered
    index = faiss.IndexFlatL2(4)
    index.add(values)
    assert open_gallery(faiss_file(tmp_path / "x.faiss", index)).numbered
    assert vectors_of(f"parquet@{tmp_path / 'a.parquet'}").numbered
    assert vectors_of(f"file://{tmp_path}/a.parquet").name == f"file://{tmp_path}/a.parquet"
    with pytest.raises(UserError, match="of URIs, s3://, gs://, hf:// and file:// are read"):
        open_gallery("azure://x/y")
