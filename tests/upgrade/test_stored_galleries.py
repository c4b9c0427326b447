"""Galleries whose vectors are stored as bytes or bits, against slow decoding and searching."""

import json

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny

from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.storage.named import vectors_of
from fct_jax.upgrade.assessment.stored_types import recall_by_type
from fct_jax.upgrade.checks.doctor import examine
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.galleries.stored import Coding, Scales, stored_type
from fct_jax.upgrade.maps.loading import load_map
from fct_jax.upgrade.migration.upgrade import Upgrade
from fct_jax.upgrade.migration.writing import ChunkWriter
from fct_jax.upgrade.parts.running import Running

COUNT, DIM = 300, 8


def wide_map():
    """Return the plain map with eight new dimensions, as whole bytes of bits need."""
    rng = np.random.default_rng(4)
    return tiny.plain_map(matrix=rng.standard_normal((tiny.OLD_DIM, DIM)).astype(np.float32),
                          known=False)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.made_galleries(tmp_path_factory.mktemp("galleries"), COUNT)


def codes_by_hand(vectors, name, low, high):
    """Return the codes of vectors as the documentation defines them, value by value."""
    if name == "binary":
        bits = [[sum((row[d + i] > 0) << (7 - i) for i in range(8)) for d in range(0, DIM, 8)]
                for row in vectors]  # fmt: skip
        return np.array(bits, np.uint8)
    scale = ((high.astype(float) - low) / 254).astype(np.float32)
    offset = ((high.astype(float) + low) / 2).astype(np.float32)
    found = np.zeros(vectors.shape, np.int8)
    for row, vector in enumerate(vectors):
        for d, value in enumerate(vector):
            code = np.rint((value - offset[d]) / scale[d])
            found[row, d] = min(max(code, -127), 127) if vector.any() else -128
    return found


def faiss_codes(path):
    """Return the codes in an index as Faiss itself reads them."""
    if path.read_bytes()[:2] == b"IB":
        index = faiss.read_index_binary(str(path))
        inner = faiss.downcast_IndexBinary(index.index)
        return faiss.vector_to_array(inner.xb).reshape(inner.ntotal, -1)
    index = faiss.read_index(str(path))
    inner = faiss.downcast_index(index.index)
    bytes_ = faiss.vector_to_array(inner.codes).reshape(inner.ntotal, -1)
    return (bytes_.astype(int) - 128).astype(np.int8)


def stored_codes(folder, form):
    if form == "faiss":
        return faiss_codes(folder / "index.faiss")
    if form == "set":
        return np.load(folder / "vectors.npy")
    tables = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return np.array([row for table in tables for row in table["vector"].to_pylist()])


@pytest.mark.parametrize("form", tiny.FORMS)
@pytest.mark.parametrize("name", ["int8", "binary"])
def test_codes_are_those_of_the_definition_and_decode(made, tmp_path, form, name):
    paths, _, _, old, _ = made
    mapping = wide_map()
    gallery = Upgrade(tmp_path).apply(mapping, paths[form], dtype=name, unchecked=True)
    new = mapping.transform(old)[0]
    codes = codes_by_hand(new, name, new.min(axis=0), new.max(axis=0))
    written = stored_codes(tmp_path / "gallery", form)
    np.testing.assert_array_equal(written, codes)
    meta = gallery.meta["stored"]
    assert meta["type"] == name and gallery.dim == DIM and "normalized" not in gallery.meta
    decoded = gallery.read(0, COUNT)
    if name == "int8":
        scale, offset = np.float32(meta["scale"]), np.float32(meta["offset"])
        np.testing.assert_array_equal(decoded, codes * scale + offset)
        assert (np.abs(decoded - new) <= scale * 0.5001).all()
    else:
        assert (np.sign(decoded) == np.where(new > 0, 1, -1)).all()
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(gallery.rows([5, 7, 6, 0]), decoded[[5, 7, 6, 0]])
    np.testing.assert_array_equal(vectors_of(tmp_path / "gallery").vectors, decoded)
    assert examine(tmp_path / "gallery").rows == COUNT


@pytest.mark.parametrize("name", ["int8", "binary"])
def test_assess_states_the_recall_of_what_is_written(made, tmp_path, name):
    paths, _, _, old, _ = made
    mapping = wide_map()
    gallery = Upgrade(tmp_path).apply(mapping, paths["set"], dtype=name, unchecked=True)
    rng = np.random.default_rng(8)
    queries = rng.standard_normal((50, DIM)).astype(np.float32)
    new, stored = mapping.transform(old)[0], gallery.read(0, COUNT)
    stated = recall_by_type(new, queries, "l2")[name]
    hits = 0
    for query in queries:
        near = [
            sorted(range(COUNT), key=lambda row: float(((v[row] - query) ** 2).sum()))[:10]
            for v in (new.astype(float), stored.astype(float))
        ]
        hits += len(set(near[0]) & set(near[1]))
    if name == "int8":
        assert stated == hits / (10 * len(queries))
    else:  # signs have few values, so there are ties, of which any may be found
        scores = stored.astype(float) @ queries.T.astype(float)
        best = np.sort(scores, axis=0)[::-1][9]
        exact = [np.argsort(((new - q) ** 2).sum(axis=1))[:10] for q in queries]
        sure = sum((scores[e, n] > best[n] + 1e-9).sum() for n, e in enumerate(exact))
        may = sum((scores[e, n] > best[n] - 1e-9).sum() for n, e in enumerate(exact))
        assert sure <= stated * 10 * len(queries) <= may


@pytest.mark.parametrize("form", tiny.FORMS)
@pytest.mark.parametrize("name", ["int8", "binary"])
def test_reembedding_rollback_and_parts_keep_the_codes(made, tmp_path, form, name):
    paths, _, ids, old, _ = made
    mapping = wide_map()
    new = 3 * mapping.transform(old)[0] + 0.1
    tiny.as_set(tmp_path / "new", new, ids, fingerprint="new-model")
    settings = {"dtype": name, "unchecked": True, "batch_size": 64}
    upgrade = Upgrade(tmp_path / "one")
    gallery = upgrade.apply(mapping, paths[form], **settings)
    before = tiny.tree(tmp_path / "one" / "gallery")
    coding = Coding.of_meta(gallery.meta, "new")
    for part in ("2/2", "1/2"):
        Upgrade(tmp_path / "parts").apply(mapping, paths[form], part=part, **settings)
    assert tiny.tree(tmp_path / "parts" / "gallery") == before
    for folder in ("one", "parts"):
        Upgrade(tmp_path / folder).apply(
            reembed=str(tmp_path / "new"), batch_items=23, max_batches=3, unchecked=True
        )
    assert tiny.tree(tmp_path / "parts" / "gallery") == tiny.tree(tmp_path / "one" / "gallery")
    half = open_gallery(tmp_path / "one" / "gallery", unfinished=True)
    done = half.versions == 1
    assert done.sum() == 69
    expected = np.where(done[:, None], new, mapping.transform(old)[0])
    np.testing.assert_array_equal(half.read(0, COUNT), coding.decode(coding.encode(expected)))
    clipped = upgrade.status().clipped
    if name == "int8":
        reach = 127.5 * coding.scales.scale
        assert clipped == (np.abs(new[done] - coding.scales.offset) > reach).sum() > 0
        assert f"{clipped:,} values clipped" in str(upgrade.status())
    else:
        assert clipped == 0
    upgrade.rollback(to=0)
    assert tiny.tree(tmp_path / "one" / "gallery") == before
    assert upgrade.status().clipped == 0


def test_clipping_is_counted_in_parts_as_in_one_process(made, tmp_path, monkeypatch):
    monkeypatch.setattr("fct_jax.upgrade.migration.translating.SAMPLE", 5)
    settings = {"dtype": "int8", "unchecked": True, "batch_size": 16}
    Upgrade(tmp_path / "one").apply(wide_map(), made[0]["parquet"], **settings)
    one = Upgrade(tmp_path / "one").status().clipped
    for part in ("1/2", "2/2"):
        Upgrade(tmp_path / "two").apply(wide_map(), made[0]["parquet"], part=part, **settings)
    assert Upgrade(tmp_path / "two").status().clipped == one > 0


@pytest.mark.parametrize("form", tiny.FORMS)
def test_a_killed_run_resumes_with_its_scales(made, tmp_path, monkeypatch, form):
    settings = {"dtype": "int8", "unchecked": True, "batch_size": 4}
    Upgrade(tmp_path / "whole").apply(wide_map(), made[0][form], **settings)
    record = ChunkWriter._record

    def failing(self, taken):
        if taken.start > 150:
            raise OSError("the disk is gone")
        record(self, taken)

    monkeypatch.setattr(ChunkWriter, "_record", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        Upgrade(tmp_path / "up").apply(wide_map(), made[0][form], **settings)
    monkeypatch.undo()
    monkeypatch.setattr(Scales, "of", None)  # they are not learnt again
    Upgrade(tmp_path / "up").apply()
    whole, found = (tiny.tree(tmp_path / name / "gallery") for name in ("whole", "up"))
    assert found == whole


def test_a_worker_takes_the_published_scales(made, tmp_path):
    settings = {"dtype": "int8", "unchecked": True, "batch_size": 16}
    Upgrade(tmp_path / "up").apply(wide_map(), made[0]["set"], part="1/2", **settings)
    worker = Running.resumed(tmp_path / "up")
    for piece in worker.publishing.pieces:
        if worker.publishing.record(piece) is None:
            worker.publishing.make(piece)
    Upgrade(tmp_path / "up").apply()
    Upgrade(tmp_path / "one").apply(wide_map(), made[0]["set"], **settings)
    assert tiny.tree(tmp_path / "up" / "gallery") == tiny.tree(tmp_path / "one" / "gallery")


def test_scales_cover_the_new_vectors_that_the_map_knows(made, tmp_path):
    paths, _, _, old, _ = made
    mapping = tiny.plain_map()
    gallery = Upgrade(tmp_path).apply(mapping, paths["set"], dtype="int8", unchecked=True)
    both = np.concatenate([mapping.transform(old)[0], mapping.known.new])
    expected = Scales.of(both)
    found = Coding.of_meta(gallery.meta, "new").scales
    np.testing.assert_array_equal(found.scale, expected.scale)
    np.testing.assert_array_equal(found.offset, expected.offset)


def test_rows_without_a_vector(tmp_path):
    _, old, _ = tiny.vectors(2000)
    old[7] = np.nan
    tiny.write_gallery("set", tmp_path / "old", np.arange(2000), old)
    gallery = Upgrade(tmp_path / "up").apply(
        wide_map(), tmp_path / "old", dtype="int8", unchecked=True
    )
    assert (np.load(tmp_path / "up" / "gallery" / "vectors.npy")[7] == -128).all()
    assert not gallery.read(7, 8).any() and gallery.read(8, 9).any()
    with pytest.raises(UserError, match="zero"):
        open_gallery(tmp_path / "up" / "gallery").sound()


@pytest.mark.parametrize("name", ["int8", "binary", "float32"])
def test_rows_that_faiss_would_find_are_told(tmp_path, name, capsys):
    """Until they are re-embedded."""
    ids, old, _ = tiny.vectors(2000)
    old[7], old[9] = np.nan, 0
    path = tiny.write_gallery("faiss", tmp_path / "old", ids, old)
    tiny.as_set(tmp_path / "new", wide_map().transform(np.ones_like(old))[0], ids)
    given = {"dtype": name, "unchecked": True}
    upgrade = Upgrade(tmp_path / "up")
    upgrade.apply(wide_map(), path, **given)
    told = f"2 rows have no usable vector, but {name} codes, which a search may find"
    assert (told in " ".join(capsys.readouterr().err.split())) == (name != "float32")
    upgrade.apply(reembed=str(tmp_path / "new"), unchecked=True)
    assert "no usable vector" not in capsys.readouterr().err


def test_a_coded_gallery_is_upgraded_again(made, tmp_path):
    first = Upgrade(tmp_path / "a").apply(wide_map(), made[0]["set"], dtype="int8", unchecked=True)
    second = Upgrade(tmp_path / "b").apply(
        load_map("identity"), tmp_path / "a" / "gallery", unchecked=True
    )
    assert second.stored_as.name == "int8" and not first.exact
    step = second.coding.scales.scale  # the range may be another one, so codes are rounded again
    assert (np.abs(second.read(0, COUNT) - first.read(0, COUNT)) <= step * 0.5001).all()
    third = Upgrade(tmp_path / "c").apply(
        load_map("identity"), tmp_path / "a" / "gallery", dtype="float32", unchecked=True
    )
    np.testing.assert_array_equal(third.read(0, COUNT), first.read(0, COUNT))


@pytest.mark.parametrize("form", tiny.FORMS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stored": {"type": "int8"}}, "does not say how vectors are stored"),
        ({"stored": {"scale": [1], "offset": [0]}}, "does not say how vectors are stored"),
        ({"stored": {"type": 8}}, "unknown dtype 8"),
        ({"stored": {"type": "int4"}}, "unknown dtype 'int4'; did you mean 'int8'"),
        ({"stored": {"type": "int8", "scale": [1], "offset": [0]}}, "one scale and offset a dim"),
        ({"dimension": DIM - 1}, "holds 8 numbers for each vector, but its description says 7"),
        ({"dimension": None}, "holds 8 numbers for each vector, but its description says None"),
    ],
)
def test_damaged_descriptions(made, tmp_path_factory, form, change, message):
    folder = tmp_path_factory.getbasetemp() / f"described-{form}"
    if not folder.is_dir():
        Upgrade(folder).apply(wide_map(), made[0][form], dtype="int8", unchecked=True)
    (path,) = (folder / "gallery").glob("*meta.json")
    described = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(described), **change}))
        with pytest.raises(UserError, match=message):
            open_gallery(folder / "gallery")
    finally:
        path.write_text(described)


def test_a_description_of_another_program_may_use_the_same_word(tmp_path):
    ids, old, _ = tiny.vectors(20)
    folder = tiny.as_set(tmp_path / "old", old, ids, stored="in Oslo")
    assert EmbeddingSet.read(folder).dim == open_gallery(folder).dim == old.shape[1]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_faiss_searches_what_it_reads(made, tmp_path, metric):
    paths, _, ids, old, _ = made
    mapping = tiny.plain_map(matrix=wide_map().function.weight, known=False, metric=metric)
    queries = np.random.default_rng(8).standard_normal((9, DIM)).astype(np.float32)
    new = mapping.transform(old)[0]
    for name in ("int8", "binary"):
        gallery = Upgrade(tmp_path / name).apply(mapping, paths["faiss"], dtype=name,
                                                 unchecked=True)  # fmt: skip
        path = str(tmp_path / name / "gallery" / "index.faiss")
        written = path.replace("index.faiss", "again.faiss")
        if name == "binary":
            index = faiss.read_index_binary(path)
            found = index.search(np.packbits(queries > 0, axis=1), 5)[0]
            unlike = ((queries > 0)[:, None] != (new > 0)[None]).sum(axis=2)
            np.testing.assert_array_equal(found, np.sort(unlike, axis=1)[:, :5])
            faiss.write_index_binary(index, written)
        else:
            index = faiss.read_index(path)
            vectors = gallery.read(0, COUNT)
            np.testing.assert_allclose(index.index.reconstruct_n(0, COUNT), vectors, atol=1e-5)
            products = queries @ vectors.T
            squares = ((queries[:, None] - vectors[None]) ** 2).sum(axis=2)
            expected = -np.sort(-products) if metric == "cosine" else np.sort(squares)
            found = index.search(queries, 5)[0]
            np.testing.assert_allclose(found, expected[:, :5], rtol=1e-3, atol=1e-4)
            faiss.write_index(index, written)
        # Faiss itself would have written the same bytes.
        saved = (tmp_path / name / "gallery" / "again.faiss").read_bytes()
        assert saved == (tmp_path / name / "gallery" / "index.faiss").read_bytes()
        np.testing.assert_array_equal(gallery.ids, ids)


def test_refusals(made, tmp_path):
    paths = made[0]
    with pytest.raises(UserError, match="packs eight dimensions into a byte, but the new vectors"):
        Upgrade(tmp_path / "a").apply(tiny.plain_map(), paths["set"], dtype="binary")
    with pytest.raises(UserError, match="unknown dtype 'int4'; did you mean 'int8'"):
        Upgrade(tmp_path / "b").apply(wide_map(), paths["set"], dtype="int4")
    with pytest.raises(UserError, match="dtype=int8: a store has the type of its own vectors"):
        Upgrade(tmp_path / "c").apply(wide_map(), "postgresql://h/db?table=x", dtype="int8")
    Upgrade(tmp_path / "d").apply(wide_map(), paths["set"], dtype="int8", unchecked=True)
    with pytest.raises(UserError, match="dtype: int8 there, binary now"):
        Upgrade(tmp_path / "d").apply(dtype="binary")
    with pytest.raises(UserError, match="holds vectors stored as int8; open_gallery decodes them"):
        EmbeddingSet.read(tmp_path / "d" / "gallery")
    # A type that is given only when the gallery is there already.
    Upgrade(tmp_path / "e").apply(wide_map(), paths["set"], unchecked=True)
    with pytest.raises(UserError, match="dtype: 'float32' there, 'int8' now"):
        Upgrade(tmp_path / "e").apply(dtype="int8")


def test_values_that_round_trip():
    rng = np.random.default_rng(1)
    vectors = (rng.standard_normal((500, 8)) * [1, 10, 1e-3, 0, 5, 100, 1, 1] + 3).astype("f4")
    coding = Coding(stored_type("int8"))
    coding.learn(vectors)
    codes = coding.encode(vectors)
    np.testing.assert_array_equal(coding.encode(coding.decode(codes)), codes)
    assert json.loads(json.dumps(coding.to_meta())) == coding.to_meta()
    assert codes.min() == -127 and codes.max() == 127 and not coding.clipped(vectors).any()
