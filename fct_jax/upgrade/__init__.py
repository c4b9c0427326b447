"""Upgrade a gallery of vectors from one embedding model to another.

    from fct_jax import upgrade

    h = upgrade.fit("sample_old", "sample_new", out="map")
    print(upgrade.assess(h, "test_old", "test_new", out="report").text)
    upgrade.Upgrade("upgrade").apply(h, "gallery_old", reembed="mymodel:embed_ids")

The names are imported when first used.
"""

import importlib

# public name -> module that defines it
_PUBLIC = {
    "Calibration": "ways.calibration",
    "Map": "maps.map",
    "Upgrade": "migration.upgrade",
    "assess": "assessment.assessing",
    "calibrate": "ways.calibration",
    "fit": "maps.fitting",
    "load_map": "maps.loading",
    "cascade": "ways.cascade",
    "midpoint": "ways.interpolation",
    "open_gallery": "galleries.base",
    "open_store": "stores",
    "recalibrated_threshold": "checks.thresholds",
    "search": "ways.serving",
    "slerp": "ways.interpolation",
    "translation_confidence": "confidence",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
