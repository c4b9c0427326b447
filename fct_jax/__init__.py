"""Change the embedding model of a retrieval service without re-embedding its gallery.

``load_model(run)`` returns the frozen model of a run, ``load_map(directory)`` a fitted map,
``EmbeddingSet`` reads and writes vectors, and ``class_statistics(embeddings, labels, num_classes)``
computes the class centres and radii of an old model, which backward-compatible training needs.
``upgrade`` and ``evaluate`` are the packages for live galleries and for retrieval metrics:

    import fct_jax

    vectors = fct_jax.EmbeddingSet.read("vectors_old")
    translated, log_variance = fct_jax.load_map("map").transform(vectors.vectors)
"""

from fct_jax.runtime import lazy

__version__ = "0.2.0"

# public name -> module that defines it, or None for a subpackage
_PUBLIC = {
    "ClassStatistics": "storage.class_statistics",
    "EmbeddingSet": "storage.embedding_set",
    "class_statistics": "storage.class_statistics",
    "evaluate": None,
    "load_map": "upgrade.maps.loading",
    "load_model": "frozen.model",
    "upgrade": None,
}

__getattr__, __dir__, __all__ = lazy.names(__name__, _PUBLIC)
__all__.append("__version__")
