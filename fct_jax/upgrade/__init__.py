"""Upgrade a gallery of vectors from one embedding model to another.

    from fct_jax import upgrade

    h = upgrade.fit("sample_old", "sample_new", out="map")
    print(upgrade.assess(h, "test_old", "test_new", out="report").text)
    upgrade.Upgrade("upgrade").apply(h, "gallery_old", reembed="mymodel:embed_ids")

The names are imported when first used.
"""

from fct_jax.runtime import lazy

# public name -> module that defines it
_PUBLIC = {
    "Calibration": "upgrade.ways.calibration",
    "Map": "upgrade.maps.map",
    "Upgrade": "upgrade.migration.upgrade",
    "assess": "upgrade.assessment.assessing",
    "calibrate": "upgrade.ways.calibration",
    "fit": "upgrade.maps.fitting",
    "load_map": "upgrade.maps.loading",
    "cascade": "upgrade.ways.cascade",
    "midpoint": "upgrade.ways.interpolation",
    "open_gallery": "upgrade.galleries.base",
    "open_store": "upgrade.stores",
    "recalibrated_threshold": "upgrade.checks.thresholds",
    "search": "upgrade.ways.serving",
    "slerp": "upgrade.ways.interpolation",
    "translation_confidence": "upgrade.confidence",
}

__getattr__, __dir__, __all__ = lazy.names(__name__, _PUBLIC)
