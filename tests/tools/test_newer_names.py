"""tools/newer_names.py: names of other packages in releases that cannot run here."""

import zipfile

import pytest

from tools import newer_names

FILES = {
    "jax/__init__.py": "from jax._src.api import jit as jit\n\n_deprecations = {\n"
    '    "old_name": ("gone soon", None),\n}\n',
    "jax/numpy/__init__.py": "from jax._src import sum as sum\n",
    "jax/nn.py": "relu = None\n",
}


def test_names_are_found_by_whatever_name_a_file_gives_them(tmp_path, monkeypatch):
    monkeypatch.setattr(newer_names, "ROOT", tmp_path)
    folder = tmp_path / "fct_jax"
    folder.mkdir()
    (folder / "a.py").write_text(
        "import jax\nimport jax.numpy as jnp\nfrom jax import nn as layers, lax\nimport numpy\n"
        "def f(x):\n    return jnp.linalg.norm(layers.relu(x)) + jax.jit(numpy.sum)(x.lax)\n"
    )
    assert newer_names.used("jax").keys() == {
        *("jax", "jax.numpy", "jax.nn", "jax.lax", "jax.jit"),
        *("jax.numpy.linalg", "jax.numpy.linalg.norm", "jax.nn.relu"),
    }


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("jax.jit", None),
        ("jax.numpy.sum", None),
        ("jax.nn.relu", None),
        ("jax.numpy", None),
        ("jax.numpy.product", "not in jax/numpy"),
        ("jax.pmap", "not in jax"),
        ("jax.old_name", "deprecated in jax"),
        ("other.name", "no module other"),
    ],
)
def test_what_is_missing_or_deprecated(name, why):
    assert newer_names.missing([name], FILES) == ({name: why} if why else {})


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(newer_names, "ROOT", tmp_path)
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "a.py").write_text("from jax import numpy as jnp\njnp.sum(1)\n")

    def wheel(text):
        with zipfile.ZipFile(tmp_path / "jax-9-py3-none-any.whl", "w") as archive:
            archive.writestr("jax/numpy.py", text)
            archive.writestr("jax/__init__.py", "")

    wheel("def sum(): ...")
    assert newer_names.main([str(tmp_path)]) == 0
    wheel("def add(): ...")
    assert newer_names.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "2 names are used, 0 are missing or deprecated" in said
    assert "  jax.numpy.sum: not in jax/numpy (tools/a.py)" in said
    with pytest.raises(SystemExit):
        newer_names.main([str(tmp_path / "tools")])
