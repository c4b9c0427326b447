"""Upgrade a gallery of vectors from one embedding model to another.

    from fct_jax import upgrade

    h = upgrade.fit("sample_old", "sample_new", out="map")
    print(upgrade.assess(h, "test_old", "test_new", out="report").verdict.text)
    upgrade.apply(h, "gallery_old", "upgrade", reembed="mymodel:embed_ids")

The functions are imported when first used.
"""

import importlib
import sys
import types

# Public name -> the module that it is from.
_PUBLIC = {
    "fit": "fit",
    "assess": "assess",
    "plan": "plan",
    "apply": "apply",
    "status": "apply",
    "rollback": "apply",
    "Map": "maps",
    "load_map": "maps",
    "Calibration": "calibration",
    "calibrate": "calibration",
    "search": "serving",
    "open_gallery": "galleries",
}


class _Package(types.ModuleType):
    """The package, in which ``fit`` is the function even after the module ``fit`` was imported."""

    def __getattr__(self, name: str):
        if name not in _PUBLIC:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{self.__name__}.{_PUBLIC[name]}")
        return getattr(module, name)

    def __setattr__(self, name: str, value) -> None:
        # Importing a submodule sets it as an attribute of its package.
        if name in _PUBLIC and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
