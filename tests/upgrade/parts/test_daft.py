"""The recipe for Daft in docs/scale.md gives the vectors of the map."""

import re
import types
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_galleries as tiny

DOCS = Path(__file__).parents[3] / "docs" / "scale.md"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_recipe(tmp_path):
    pytest.importorskip("daft", reason="Daft: pip install daft")
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(code.strip().splitlines()) <= 35
    recipe = types.ModuleType("recipe")
    exec(code, recipe.__dict__)
    ids, old, _ = tiny.vectors(500)
    folder = tmp_path / "old"
    folder.mkdir()
    tiny.write_parquet(folder, ids, old)
    tiny.plain_map().save(tmp_path / "map")
    recipe.translate(folder, tmp_path / "new", tmp_path / "map")
    made = pq.read_table(tmp_path / "new").to_pydict()
    order = np.argsort(made["id"])
    expected, _ = tiny.plain_map().transform(old[np.argsort(ids)])
    np.testing.assert_allclose(np.array(made["vector"])[order], expected, atol=1e-6)
    np.testing.assert_array_equal(np.array(made["id"])[order], np.sort(ids))
    assert made["title"][0] == f"item {made['id'][0]}"
