"""The examples in the docstrings of the package are run as they stand."""

import doctest
import importlib
import inspect
from pathlib import Path
from types import ModuleType

import pytest

import fct_jax

PACKAGE = Path(__file__).parents[1] / "fct_jax"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text("utf-8"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(
        ".__init__"
    )


@pytest.mark.parametrize("name", [_module(path) for path in FILES])
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0, "the module has examples, but none was run"
    assert found.failed == 0, f"{found.failed} of {found.attempted} lines of examples fail"


def test_no_example_is_left_out():
    """Every public loss, measure and file format that users call has one; none is skipped."""
    assert [str(path) for path in FILES if "doctest: +SKIP" in path.read_text("utf-8")] == []
    shown = {_module(path) for path in FILES}
    for name in (
        "evaluate.backfill",
        "evaluate.metrics",
        "evaluate.orders",
        "evaluate.search",
        "compare.measures",
        "losses.alignment",
        "losses.boundary",
        "losses.compatibility",
        "losses.pairs",
        "storage.class_statistics",
        "storage.embedding_set",
    ):
        assert f"fct_jax.{name}" in shown


@pytest.mark.parametrize("package", [fct_jax, fct_jax.upgrade, fct_jax.evaluate])
def test_public_names_have_an_example(package):
    for name in package.__all__:
        found = getattr(package, name)
        if not isinstance(found, ModuleType | str):
            text = inspect.getdoc(found) or ""
            assert ">>> " in text or "Example" in text, name
