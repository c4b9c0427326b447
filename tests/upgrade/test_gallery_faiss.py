"""Faiss files of every kind that can return vectors, by the ids they were added with."""

import faiss
import numpy as np
import pytest
from gallery_files import check, faiss_file, random

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries.base import open_gallery


@pytest.fixture
def one_thread():
    """Train Faiss's small quantisers on one thread, as several would wait for each other."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


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
def test_faiss_indexes_of_approximations(tmp_path, kind, mapped, capsys, one_thread):
    """Quantised vectors (P7) are read as Faiss returns them, by the ids they were added with."""
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
    assert not gallery.exact and "approximations of the vectors" in capsys.readouterr().err
    expected = ids if mapped or kind == "own" else np.arange(300)
    assert set(gallery.ids.tolist()) == set(expected.tolist())
    rows = np.argsort(expected)[np.searchsorted(np.sort(expected), gallery.ids)]
    error = np.linalg.norm(gallery.read(0, 300) - values[rows], axis=1)
    shuffled = np.linalg.norm(gallery.read(0, 300) - values[rows[::-1]], axis=1)
    assert error.mean() < shuffled.mean() / 2


def test_faiss_inner_products(tmp_path, capsys):
    """The inner product of vectors with different lengths is no cosine (P15)."""
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
    with pytest.raises(UserError, match="holds binary vectors"):
        open_gallery(tmp_path / "x.faiss")
