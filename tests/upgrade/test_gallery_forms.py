"""A form of gallery is one row: recognised, named by the user, or offered by another package."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from patience import LONG

from fct_jax.errors import UserError
from fct_jax.upgrade.galleries import FORMS, Form, suffix
from fct_jax.upgrade.galleries.base import Gallery, open_gallery
from fct_jax.upgrade.galleries.embedding_set import SetTarget
from fct_jax.upgrade.galleries.rows import Rows
from fct_jax.upgrade.galleries.target import Target

_PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """Write the module of docs/formats.md to the current folder, and a gallery of its form."""
    module = re.search(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "my_forms.py").write_text(module)
    (tmp_path / "x.lines").write_text("1 2\n3 4\n5 6\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "x.lines"


def test_a_form_by_module_and_name(lines):
    for gallery in (
        open_gallery(lines, form="my_forms:LINES"),
        open_gallery(f"my_forms:LINES@{lines}"),
    ):
        assert (gallery.form, len(gallery), gallery.dim) == ("lines", 3, 2)
        np.testing.assert_array_equal(gallery.rows([2, 0]), [[5, 6], [1, 2]])
        assert gallery.writer is SetTarget
    with pytest.raises(UserError, match="unknown form of gallery 'parket'; did you mean 'parquet'"):
        open_gallery(lines, form="parket")


def test_an_entry_point_is_recognised(lines, monkeypatch):
    offered = importlib.metadata.EntryPoint("lines", "my_forms:LINES", "fct_jax.galleries")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [offered] if group == "fct_jax.galleries" else [],
    )
    assert open_gallery(lines).form == "lines"
    assert len(open_gallery(f"lines@{lines}")) == 3
    with pytest.raises(
        UserError, match=r"nothing is there; did you mean .* or a file of lines \(.lines\)"
    ):
        open_gallery(lines.with_name("x.line"))


def test_an_absent_library_is_named(tmp_path):
    form = Form("x", "x", suffix(".x"), "no_such_library_here:Reader", extra="x")
    with pytest.raises(UserError, match=r"no such module.*; pip install 'fct_jax\[x\]'"):
        form.open(tmp_path, None)


def test_every_row_has_reader_and_writer():
    for name, form in FORMS.items():
        assert form.name == name
        reader = pytest.importorskip(form.reader.partition(":")[0]) and form.load()
        assert issubclass(reader, Gallery) and issubclass(reader.writer, Target)


def test_no_form_is_compared_by_name_outside_its_file():
    """Objects tell forms apart; names are only in the table, in journals and in messages."""
    found = subprocess.run(
        ["grep", "-rnE", r"\.form\s*(==|!=|in\b|not in\b)", "fct_jax/upgrade"],
        capture_output=True,
        text=True,
        timeout=LONG,
        cwd=Path(__file__).parents[2],
    )
    assert found.stdout == ""


def test_the_page_has_every_form():
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", _PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == list(FORMS)
    for name, written in rows:
        pytest.importorskip(FORMS[name].reader.partition(":")[0])
        assert (FORMS[name].load().writer is SetTarget) == (
            name == "set" or written == "EmbeddingSet"
        )


def test_rows_of_float16(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float16))
    offset = np.load(tmp_path / "x.npy", mmap_mode="r").offset
    rows = Rows(tmp_path / "x.npy", offset, 3, np.float16)
    rows.put(np.array([3, 1]), np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    rows.put(np.empty(0, int), np.empty((0, 3), np.float32))
    rows.close()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy")[[1, 3]], [[4, 5, 6], [1, 2, 3]])
