"""Public names of a package that are imported when they are first used."""

import importlib
from collections.abc import Callable, Mapping


def names(package: str, public: Mapping[str, str | None]) -> tuple[Callable, Callable, list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Args:
      package: its name.
      public: name -> module below ``fct_jax`` that defines it, or None for a subpackage.

    >>> find, _, known = names("fct_jax.evaluate", {"knn": "evaluate.search"})
    >>> find("knn").__module__, known
    ('fct_jax.evaluate.search', ['knn'])
    """
    known = sorted(public)

    def find(name: str):
        if name not in public:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if public[name] is None:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(f"fct_jax.{public[name]}"), name)

    return find, lambda: known, known
