"""Tries public reports of files that could not be read, or were read wrongly.

P1 see test_reports_copies.py             P2 phoenix#22, slack-knowledgebase#1002
P3 arrow#36168, #39790, polars#25572      P4 pg_parquet#133, ClickHouse#99521, duckdb#3197
P5 arrow-rs#47, duckdb#7317, ray#23179    P6 RETRO-pytorch#13, clip-retrieval#12, #213
P7 faiss#598 … #1529                      P10 sentence-transformers#2837, USearch#405
P15 chroma#1187, milvus#26811             P16 DiskANN#966, faiss#1519, ann-benchmarks#603
P18 open-webui#13225, dify#12482          P21 gitlab !187518
P23 lancedb#4220, datasets#1662           P24 latent-scope#118
P28 arrow#14229, uv-scripts#88
"""

import subprocess
import sys
import textwrap
import uuid

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny
from gallery_files import check, laion, random, write_vecs
from memory_of_blocks import memory_of_blocks
from patience import LONG

from fct_jax.errors import UserError
from fct_jax.storage.named import vectors_of
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.inputs import paired

FLOATS = pa.list_(pa.float32())


def parquet(path, ids, vectors, kind=FLOATS, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors = vectors if isinstance(vectors, pa.Array) else pa.array(list(vectors), kind)
    pq.write_table(pa.table({"id": ids, "vector": vectors, **columns}), path)
    return path


def test_p2_vectors_as_text(tmp_path):
    """The cell is the string "[1.31,-0.46,…]": it is read, and the copy has lists."""
    values = random(200, 24)
    cells = pa.array(["[" + ",".join(map(repr, v.tolist())) + "]" for v in values])
    for kind in (pa.string(), pa.large_string()):
        parquet(tmp_path / "x.parquet", np.arange(200), cells.cast(kind))
        check(open_gallery(tmp_path / "x.parquet"), values)
    parquet(tmp_path / "x.parquet", [1, 2], pa.array(["[0.1, 0.2]", "a caption, no vector"]))
    with pytest.raises(UserError, match=r"the vector of id 2 \(x.parquet, row 1\) is null"):
        open_gallery(tmp_path / "x.parquet").sound()


@pytest.mark.parametrize("kind", [pa.list_(pa.float16(), 768), pa.list_(pa.float16())], ids=str)
def test_p3_lists_of_float16(tmp_path, kind):
    values = random(50, 768).astype(np.float16)
    path = parquet(tmp_path / "x.parquet", np.arange(50), values, kind)
    gallery = check(open_gallery(path), values.astype(np.float32))
    assert gallery.dtype == np.float16


@pytest.mark.parametrize("fixed", [True, False])
def test_p3_float16_by_polars(tmp_path, fixed):
    polars = pytest.importorskip("polars", reason="polars is not installed")
    values = random(50, 8).astype(np.float16)
    kind = polars.Array(polars.Float16, 8) if fixed else polars.List(polars.Float16)
    frame = polars.DataFrame(
        {"id": range(50), "vector": polars.Series(values.tolist(), dtype=kind)}
    )
    frame.write_parquet(tmp_path / "x.parquet")
    gallery = check(open_gallery(tmp_path / "x.parquet"), values.astype(np.float32))
    assert gallery.dtype == np.float16


def test_p4_uuids_of_any_kind_are_the_same_ids(tmp_path):
    """pa.uuid(), 16 bytes, text, and 16 bytes in .npy are equal; upper-case text is reported."""
    uuids = [uuid.uuid5(uuid.NAMESPACE_DNS, str(i)) for i in range(30)]
    values = random(30)
    kinds = {
        "uuid": pa.array([u.bytes for u in uuids], pa.uuid()),
        "bytes": pa.array([u.bytes for u in uuids], pa.binary(16)),
        "lower": pa.array([str(u) for u in uuids]),
    }
    for name, ids in kinds.items():
        path = parquet(tmp_path / f"{name}.parquet", ids, values)
        check(open_gallery(path), values, [str(u) for u in uuids])
    upper = parquet(tmp_path / "upper.parquet", [str(u).upper() for u in uuids], values)
    with pytest.raises(UserError, match="share 0 ids.*they differ in upper and lower case"):
        paired(vectors_of(upper), vectors_of(path))
    np.save(tmp_path / "x.npy", values)
    for held in (
        np.array([u.bytes for u in uuids], "S16"),
        np.frombuffer(b"".join(u.bytes for u in uuids), "V16"),
        np.array([str(u) for u in uuids]),
    ):
        np.save(tmp_path / "x_ids.npy", held)
        check(open_gallery(tmp_path / "x.npy"), values, [str(u) for u in uuids])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_p5_ten_thousand_files(tmp_path):
    """10,000 files in hive folders are read where 1,024 may be open."""
    mark = 0x0123456789ABCDEF
    schema = {"id": np.array([mark]), "vector": pa.array([[1.0, 2.0]], FLOATS)}
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table(schema), tmp_path / "x.parquet", **plain)
    template = (tmp_path / "x.parquet").read_bytes()
    assert template.count(mark.to_bytes(8, "little")) == 1
    for day in range(1, 29):
        (tmp_path / "g" / f"date=2026-01-{day:02d}").mkdir(parents=True)
    for number in range(10_000):
        data = template.replace(mark.to_bytes(8, "little"), number.to_bytes(8, "little"))
        path = tmp_path / "g" / f"date=2026-01-{number % 28 + 1:02d}" / f"part-{number}.parquet"
        path.write_bytes(data)
    code = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        import numpy as np
        from fct_jax.upgrade.galleries.base import open_gallery
        gallery = open_gallery(sys.argv[1])
        vectors = gallery.read(0, len(gallery))
        assert (vectors == [1, 2]).all()
        assert (np.sort(gallery.ids) == np.arange(10_000)).all()
        print(len(gallery))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "g")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.stdout == "10000\n", done.stderr[-2000:]


def test_p6_shards_in_the_order_of_their_numbers(tmp_path):
    values = laion(tmp_path / "laion")
    check(open_gallery(tmp_path / "laion"), values, [f"{row:09d}" for row in range(36)])


@pytest.mark.parametrize("kind", ["Flat", "IDMap,Flat", "IVF4,Flat", "IDMap2,OPQ4,IVF4,PQ4x4"])
def test_p7_faiss(tmp_path, kind):
    """Bare indexes, ids without reconstruction, inverted lists and product codes are read."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # several threads would wait for each other
    values, ids = random(300, 16), np.arange(300) * 11 + 3
    index = faiss.index_factory(16, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(values)
    index.add(values) if kind == "Flat" else index.add_with_ids(values, ids)
    faiss.omp_set_num_threads(threads)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    gallery = open_gallery(tmp_path / "x.faiss")
    assert sorted(gallery.ids) == (list(range(300)) if kind == "Flat" else ids.tolist())
    assert gallery.exact == ("PQ" not in kind)
    order = np.argsort(gallery.ids)
    likeness = np.einsum("nd,nd->n", gallery.rows(order), values)
    assert (likeness > 0).mean() > 0.95
    if gallery.exact:
        np.testing.assert_array_equal(gallery.rows(order), values)


def test_p7_and_p10_bits(tmp_path):
    index = faiss.IndexBinaryFlat(64)
    index.add(np.zeros((3, 8), np.uint8))
    faiss.write_index_binary(index, str(tmp_path / "x.faiss"))
    with pytest.raises(UserError, match="holds binary vectors, which no map can translate"):
        open_gallery(tmp_path / "x.faiss")
    packed = pa.array([[255, 3]] * 3, pa.list_(pa.uint8()))
    pq.write_table(pa.table({"_id": [1, 2, 3], "emb_ubinary": packed}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"sounds like packed bits.*unpack them first"):
        open_gallery(tmp_path / "x.parquet")


def test_p10_integers(tmp_path):
    """int8 vectors of 1,024 dimensions in folders by language are read from any columns."""
    values = (random(40, 1024) * 40).clip(-128, 127).astype(np.int8)
    for lang, rows in (("de", slice(0, 25)), ("en", slice(25, 40))):
        (tmp_path / "g" / lang).mkdir(parents=True)
        table = {
            "_id": [f"{i}" for i in range(40)][rows],
            "title": ["x"] * len(range(40)[rows]),
            "emb_int8": pa.array(list(values[rows]), pa.list_(pa.int8())),
        }
        pq.write_table(pa.table(table), tmp_path / "g" / lang / "0000.parquet")
    gallery = check(
        open_gallery(tmp_path / "g"), values.astype(np.float32), list(map(str, range(40)))
    )
    assert gallery.dtype == np.float32
    np.save(tmp_path / "x.npy", values)
    check(open_gallery(tmp_path / "x.npy"), values.astype(np.float32))


def test_p15_inner_products_of_other_lengths(tmp_path, capsys):
    """The inner product of vectors of lengths 0.5 to 3 is no cosine, and the message says so."""
    values = random(60, 16)
    values *= (np.linspace(0.5, 3, 60) / np.linalg.norm(values, axis=1))[:, None]
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(16))
    index.add_with_ids(values, np.arange(60))
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    assert open_gallery(tmp_path / "x.faiss").meta["metric"] == "ip"
    said = " ".join(capsys.readouterr().err.split())
    assert "lengths 0.5 to 3 by their inner product, which is neither cosine nor L2" in said


def test_p16_files_of_benchmarks(tmp_path):
    values = random(30, 5)
    for ending in (".fvecs", ".fbin"):
        check(open_gallery_of(tmp_path / f"base{ending}", values), values)
    small = np.abs(values * 40).astype(np.uint8)
    check(open_gallery_of(tmp_path / "base.u8bin", small), small.astype(np.float32))
    h5py = pytest.importorskip("h5py", reason="the extra hdf5 is not installed")
    with h5py.File(tmp_path / "glove.hdf5", "w") as file:
        file["train"], file["test"] = values, values[:3]
        file["neighbors"] = np.zeros((3, 2), int)
    check(open_gallery(tmp_path / "glove.hdf5"), values)
    (tmp_path / "base.fbin").rename(tmp_path / "mixed.fvecs")
    with pytest.raises(UserError, match=r"header \(30, 5\); it may be a .fbin file"):
        open_gallery(tmp_path / "mixed.fvecs")


def open_gallery_of(path, values):
    write_vecs(path, values)
    return open_gallery(path)


def test_p18_two_dimensions_in_a_folder(tmp_path):
    """The file and the row of the other dimension are named; ``doctor`` counts them."""
    parquet(tmp_path / "g" / "a.parquet", np.arange(500), random(500, 24))
    parquet(tmp_path / "g" / "b.parquet", np.arange(500, 520), random(20, 20))
    with pytest.raises(UserError, match=r"id 500 \(b.parquet, row 0\) is of dimension 20, not 24"):
        open_gallery(tmp_path / "g").sound()
    gallery = open_gallery(tmp_path / "g", on_bad="quarantine")
    with pytest.raises(UserError, match=r"20 of 520 rows are unusable.*of dimension 20, not 24"):
        gallery.sound()


def test_p21_two_columns_of_vectors(tmp_path):
    """``embedding_0`` is upgraded; ``embedding_1`` is another column, kept unchanged."""
    ids, old, new = tiny.vectors(300)
    other = pa.array(list(random(300, 9)), FLOATS)
    table = pa.table({"id": ids, "embedding_0": pa.array(list(old), FLOATS), "embedding_1": other})
    (tmp_path / "g").mkdir()
    pq.write_table(table, tmp_path / "g" / "a.parquet")
    with pytest.raises(UserError, match="embedding_0, embedding_1 hold vectors; say which"):
        open_gallery(tmp_path / "g")
    tiny.as_set(tmp_path / "new", new, ids, fingerprint="new-model")
    made = ({"g": tmp_path / "g"}, tmp_path / "new", ids, old, new)
    gallery = tiny.upgraded(made, "g", tmp_path / "w", vector_column="embedding_0")
    np.testing.assert_array_equal(gallery.read(0, 300), new)
    found = pq.read_table(tmp_path / "w" / "gallery")
    assert found["embedding_1"].combine_chunks().equals(other)


def test_p23_a_folder_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    values = random(120, 6)
    made = datasets.Dataset.from_dict({"id": list(range(120)), "vector": values.tolist()})
    made.save_to_disk(str(tmp_path / "saved"), num_shards=2)
    assert (tmp_path / "saved" / "data-00000-of-00002.arrow").is_file()
    check(open_gallery(tmp_path / "saved"), values)


def test_p24_many_vectors_an_item(tmp_path):
    kind = pa.list_(pa.list_(pa.float16(), 128))
    tokens = random(6, 128).astype(np.float16)
    many = pa.array([list(tokens[:4]), list(tokens[4:])], kind)
    pq.write_table(pa.table({"id": [1, 2], "vector": many}), tmp_path / "x.parquet")
    with pytest.raises(
        UserError, match="several vectors per item.*ColBERT gives; an item needs one vector: pool"
    ):
        open_gallery(tmp_path / "x.parquet")
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 128), np.float16))
    with pytest.raises(UserError, match="several vectors per item, as ColBERT"):
        open_gallery(tmp_path / "x.npy")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_p28_one_row_group_of_a_million(tmp_path):
    """A row group of 1,000,000 × 128 float32, 512 MB, takes a small part of that in memory."""
    kind = pa.list_(pa.float32(), 128)
    schema = pa.schema([("id", pa.int64()), ("vector", kind)])
    flat = np.random.default_rng(0).standard_normal((1_000_000, 128), np.float32)
    table = pa.table(
        [np.arange(1_000_000), pa.FixedSizeListArray.from_arrays(flat.ravel(), type=kind)], schema
    )
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=1_000_000, compression="none", use_dictionary=False)
    assert pq.ParquetFile(path).metadata.num_row_groups == 1
    sums = flat.sum(axis=0, dtype=np.float64)
    few = tmp_path / "few.parquet"
    pq.write_table(table.slice(0, 40_000), few, compression="none", use_dictionary=False)
    del table, flat
    usual, _ = memory_of_blocks(few, 1 << 14)
    most, found = memory_of_blocks(path, 1 << 14)
    assert most < usual + 60  # ids take 8 MB, twice while they are joined; the vectors 512 MB
    np.testing.assert_allclose(found, sums, atol=1e-3)
