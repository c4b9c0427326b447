"""Change the embedding model of a retrieval service without re-embedding its gallery.

``fct_jax.load_model(run)`` gives the frozen model of a run, and
``fct_jax.class_statistics(embeddings, labels, num_classes)`` what backward-compatible
training must know of an old model.
"""

import importlib

_PUBLIC = {"load_model": "fct_jax.frozen", "class_statistics": "fct_jax.statistics"}


def __getattr__(name: str):
    """Imports a public name when it is first used, so that ``--help`` answers at once."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'fct_jax' has no attribute {name!r}")
