"""Optional parts of the package: which extra brings a module that is missing."""

# module (its top-level name) -> extra of this package
EXTRAS = {
    "flax": "train",
    "grain": "train",
    "h5py": "hdf5",
    "lance": "lance",
    "libtpu": "tpu",
    "lancedb": "lance",
    "mkdocs": "docs",
    "obstore": "s3",
    "optax": "train",
    "orbax": "train",
    "pgvector": "pgvector",
    "psycopg": "pgvector",
    "pymilvus": "milvus",
    "qdrant_client": "qdrant",
    "ray": "ray",
    "sklearn": "train",
    "tensorboardX": "train",
    "tensorflow_datasets": "train",
    "torch": "torch",
}


def missing(error: ModuleNotFoundError) -> str | None:
    """Return a line that names the missing extra, or None if no extra would help."""
    name = (error.name or "").split(".")[0]
    if name not in EXTRAS:
        return None
    return f"this needs {name}, which is not installed: pip install 'fct_jax[{EXTRAS[name]}]'"
