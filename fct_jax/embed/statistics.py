"""Class statistics as files beside the embeddings that they were computed from."""

from pathlib import Path

from fct_jax.data import parse_classes
from fct_jax.errors import UserError
from fct_jax.frozen.model import Embedder
from fct_jax.runtime import processes
from fct_jax.storage.class_statistics import (
    KINDS,
    ClassStatistics,
    class_statistics,
    load_statistics,
    save_statistics,
)
from fct_jax.storage.embedding_set import EmbeddingSet


def num_known_classes(model: Embedder) -> int:
    """Return the number of the model's classes, which come first in its classifier.

    Raises UserError if there is no classifier, or if they do not come first.
    """
    if model.classifier is None:
        raise UserError(f"model {model.fingerprint} has no classifier, so its classes are unknown")
    rows = len(model.classifier)
    text = model.description.get("data", {}).get("classes", "")
    selected = parse_classes(text, rows)
    if selected is None:
        return rows
    if selected != tuple(range(len(selected))):
        raise UserError(
            f"the old model was trained on the classes {text!r}, but old classes must be numbered "
            "from 0 on; split the data with tools/split_dataset.py or config.data.subset"
        )
    return len(selected)


def statistics_path(folder, kind: str) -> Path:
    """Return the path of the statistics of an EmbeddingSet."""
    return Path(folder) / f"class_statistics_{kind}.npz"


def write_statistics(folder, num_classes: int | None, kinds=KINDS) -> None:
    """Call ``write_missing`` on the writer; all processes call this."""
    processes.from_writer(lambda: write_missing(folder, num_classes, kinds), "class statistics")


def write_missing(folder, num_classes: int | None, kinds=KINDS) -> None:
    """Compute the statistics of an EmbeddingSet with labels and write them into its directory.

    Kinds that are there already stay as they are.

    Args:
      folder: the EmbeddingSet.
      num_classes: C; samples with labels of C and more are left out. None: of all labels.
      kinds: "euclidean", "angle".

    Raises:
      UserError: there are no labels.
    """
    kinds = [kind for kind in kinds if not statistics_path(folder, kind).is_file()]
    if not kinds:
        return
    found = EmbeddingSet.read(folder, verify=False)
    if found.labels is None:
        raise UserError(f"{folder} has no labels.npy, which class statistics need")
    num_classes = num_classes or int(found.labels.max()) + 1
    for kind in kinds:
        stats = class_statistics(found.vectors, found.labels, num_classes, kind)
        save_statistics(statistics_path(folder, kind), stats, fingerprint=found.fingerprint or "")


def read_statistics(where, kind: str, fingerprint: str | None, num_classes) -> ClassStatistics:
    """Return statistics of a kind, from their file or from the directory that holds it.

    Raises UserError if they are missing, or of another kind, model or number of classes.
    """
    path = statistics_path(where, kind) if Path(where).is_dir() else where
    return load_statistics(path, fingerprint=fingerprint, num_classes=num_classes, kind=kind)
