"""Images and labels: sources with random access, preprocessing, and the Grain pipeline."""

from fct_jax.data.pipeline import Batches, batches, load_all
from fct_jax.data.sources import Source, UnreadableImage, open_source, parse_classes
from fct_jax.models.preprocessing import Preprocessing

__all__ = [
    "Batches",
    "Preprocessing",
    "Source",
    "UnreadableImage",
    "batches",
    "load_all",
    "open_source",
    "parse_classes",
]
