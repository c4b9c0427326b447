"""CONTRIBUTING.md: each example of the newcomer's path runs, by module:name and as a row."""

import importlib
import sqlite3
import sys

import doc_blocks
import numpy as np
import pytest
import tiny_runs

from fct_jax import cli, load_map
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade import open_gallery


def example(heading: str) -> str:
    return doc_blocks.section("CONTRIBUTING.md", f"### {heading}")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Make an empty current folder whose modules are imported, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{tiny_runs.ENVIRONMENT['PYTHONPATH']}")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def pairs(count=600, dim=8):
    """Return old vectors, and new ones whose every dimension is scaled and shifted."""
    rng = np.random.default_rng(0)
    old = rng.normal(size=(count, dim)).astype(np.float32)
    new = old * np.linspace(-2, 3, dim) + np.linspace(1, 2, dim)
    return old, new.astype(np.float32)


def test_a_gallery_form(here, monkeypatch):
    vectors = pairs(50)[0]
    ids = np.arange(50) * 3 + 1
    with sqlite3.connect("items.sqlite") as file:
        file.execute("CREATE TABLE items(id INTEGER PRIMARY KEY, vector BLOB)")
        rows = [(int(i), v.tobytes()) for i, v in zip(ids, vectors, strict=True)]
        file.executemany("INSERT INTO items VALUES (?, ?)", rows[::-1])
    text = example("A gallery form")
    module = importlib.import_module(doc_blocks.write_module(text))
    for words in doc_blocks.commands(text):
        assert doc_blocks.run(words) == cli.DONE, words
    written = EmbeddingSet.read("up_form/gallery")
    np.testing.assert_array_equal(written.ids, ids)
    np.testing.assert_array_equal(written.vectors, vectors)

    from fct_jax.upgrade.galleries import FORMS

    monkeypatch.setitem(FORMS, "sqlite", module.SQLITE)
    gallery = open_gallery("items.sqlite")
    assert gallery.form == "sqlite"
    np.testing.assert_array_equal(gallery.rows([49, 0, 7]), vectors[[49, 0, 7]])
    with sqlite3.connect("empty.sqlite") as file:
        file.execute("CREATE TABLE items(id INTEGER PRIMARY KEY, vector BLOB)")
    assert cli.main(["doctor", "empty.sqlite"]) == cli.MISTAKE


def test_a_map(here, monkeypatch):
    old, new = pairs()
    np.save("old.npy", old)
    np.save("new.npy", new)
    text = example("A map")
    module = importlib.import_module(doc_blocks.write_module(text))
    for words in doc_blocks.commands(text):
        assert doc_blocks.run(words) == cli.DONE, words
    fitted = load_map("map")
    assert fitted.method == "my_maps:DIAGONAL" and fitted.has_uncertainty
    np.testing.assert_allclose(fitted.transform(old)[0], new, rtol=1e-4, atol=1e-4)
    assert ("numpy.safetensors" in {path.name for path in (here / "map").iterdir()}) is True

    from fct_jax.upgrade.maps.methods import METHODS

    monkeypatch.setitem(METHODS, "diagonal", module.DIAGONAL)
    assert cli.main(["fit", "old.npy", "new.npy", "--method", "diagonal", "--out", "row"]) == 0
    assert load_map("row").method == "diagonal"


def test_an_order_of_re_embedding(here, monkeypatch):
    old, new = pairs()
    old[:3] *= 40  # the map is least certain of vectors far from all others
    np.save("old.npy", old)
    np.save("new.npy", new + np.random.default_rng(1).normal(size=new.shape).astype(np.float32))
    assert cli.main(["fit", "old.npy", "new.npy", "--method", "ridge", "--out", "map"]) == 0
    text = example("An order of re-embedding")
    module = importlib.import_module(doc_blocks.write_module(text))
    for words in doc_blocks.commands(text):
        assert doc_blocks.run(words) == cli.DONE, words
    planned = np.load("up_order/plan/rows.npy")
    uncertainty = load_map("map").transform(old)[1]
    limit = np.quantile(uncertainty, 0.99)
    kept = np.flatnonzero(uncertainty <= limit)
    assert len(planned) == 50
    assert set(planned) == set(kept[np.argsort(-uncertainty[kept], kind="stable")][:50])

    from fct_jax.evaluate import orders

    monkeypatch.setattr(orders, "ORDERS", {**orders.ORDERS, "trimmed": module.TRIMMED})
    found = orders.backfill_order("trimmed", uncertainty=uncertainty)
    np.testing.assert_array_equal(found[:50], planned)


@pytest.mark.slow
def test_a_data_set(here, monkeypatch):
    from fct_jax.data import readers
    from fct_jax.data.sources import open_source

    folder, rng = here / "pictures", np.random.default_rng(0)
    folder.mkdir()
    labels = np.arange(60) % 3
    for split in ("train", "validation"):
        images = (
            rng.integers(0, 60, (60, 8, 8, 3))
            + 90 * (np.arange(3) == labels[:, None])[:, None, None, :]
        )
        np.savez(folder / f"{split}.npz", images=images.astype(np.uint8), labels=labels)
    text = example("A data set")
    module = importlib.import_module(doc_blocks.write_module(text))
    kind = readers.Kind(module.ArraysReader.splits, module.ArraysReader)
    monkeypatch.setitem(readers._KINDS, "arrays", kind)
    section = readers.Where("arrays", str(folder), "", "", False)
    source = open_source(section, "train")
    assert len(source) == 60 and source.image_size == (8, 8)
    small = (
        f"model.name={tiny_runs.MODEL}",
        "model.width=4",
        "preprocessing.size=8",
        "batch_size=20",
    )
    for words in doc_blocks.commands(text):
        assert doc_blocks.run(words, small) == cli.DONE, words
    assert (here / "run" / "model" / "model.json").is_file()
