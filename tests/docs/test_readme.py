"""README.md: its commands and its Python run as they stand, and it shows what is printed."""

import re

import doc_blocks
import numpy as np
import pytest

from fct_jax import cli
from fct_jax.upgrade import open_gallery

UPGRADE = doc_blocks.section("README.md", "## Upgrade a gallery")


@pytest.fixture
def vectors(tmp_path, monkeypatch):
    """Write the files that the README names, and ``mymodel.py``, to the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    for name, count in (("vectors", 400), ("sample", 400), ("test", 300), ("gallery", 300)):
        old = rng.normal(size=(count, 8)).astype(np.float32)
        noise = 0.1 * rng.normal(size=old.shape)
        np.save(f"{name}_old.npy", old)
        np.save(f"{name}_new.npy", (old @ turned + noise).astype(np.float32))
    (tmp_path / "mymodel.py").write_text(
        "import numpy as np\n\n\n"
        "def embed_ids(ids):\n"
        "    return np.load('gallery_new.npy')[np.asarray(ids, int)]\n"
    )
    return tmp_path


@pytest.mark.slow
def test_the_commands_and_the_python_run(vectors):
    for words in doc_blocks.commands(UPGRADE):
        if words == ["demo"]:  # this one is run below
            continue
        small = {"assess": ("--resamples", "50"), "fit": ("--candidates", "procrustes,ridge")}
        code = doc_blocks.run(words, small.get(words[0], ()))
        assert code in (cli.DONE, cli.LOOK), words
    gallery = open_gallery("upgrade/gallery")
    assert gallery.versions.sum() == 100
    new = np.load("gallery_new.npy")
    rows = np.flatnonzero(gallery.versions)
    np.testing.assert_array_equal(gallery.rows(rows), new[rows])
    (block,) = doc_blocks.blocks(UPGRADE, "python")
    exec(block.replace('out="map2"', 'out="map2", method="ridge"'), {})
    assert open_gallery("upgrade2/gallery").dim == 8
    assert (vectors / "report" / "report.html").is_file()


def shape(text: str) -> list[str]:
    """Return the words of a text with every number as "0", since processors round differently."""
    return re.sub(r"[+-]?\d[\d,.]*", "0", text).split()


@pytest.mark.slow
def test_the_demo_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["demo"]) == cli.DONE
    printed = " ".join(shape(capsys.readouterr().out))
    (shown,) = doc_blocks.blocks(UPGRADE, "text")
    for part in shown.split("…"):
        assert " ".join(shape(part)) in printed
