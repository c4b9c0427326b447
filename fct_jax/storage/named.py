"""The only resolver of a user's names, so that every command accepts the same things.

vectors_of("sample.npy")             arrays, EmbeddingSets, and every form of galleries.FORMS
vectors_of("runs/old", data=…)       a run, or module:function, embeds the images of `data`
classifier_of("runs/new")            a run's classifier, an array or a .npy file
array_of("labels.npy", "labels")     plain arrays
names_in("bct=runs/bct,fct=map")     several of them, each with a name of its own
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.frozen.runs import is_model, is_run
from fct_jax.storage.embedding_set import EmbeddingSet, is_coded


def vectors_of(
    where,
    role: str = "vectors",
    *,
    data=None,
    split: str = "train",
    id_column: str | None = None,
    vector_column: str | None = None,
) -> EmbeddingSet:
    """Open vectors by a user's name for them, as an EmbeddingSet.

    Args:
      where: an EmbeddingSet, an array (N, D), a path of any form in
        ``fct_jax.upgrade.galleries.FORMS`` (an EmbeddingSet, ``.npy``, Parquet, Faiss, …), a run,
        or ``module:function``. EmbeddingSets and ``.npy`` files stay on disk; other forms are read
        into memory.
      role: "old", "new", … for messages.
      data: a config like ``fct_jax.config.data``: the images that a run or a function embeds; the
        embeddings are stored and reused.
      split: split of ``data``.
      id_column, vector_column: names of columns, in forms that have columns; None: found.

    Raises:
      UserError: there is no such thing, or a run is named without images.

    Example:
      >>> vectors_of(np.eye(3, dtype=np.float32)).dim
      3
    """
    if isinstance(where, EmbeddingSet):
        return where
    if not isinstance(where, str | Path):
        return EmbeddingSet.of(where)
    if not str(where):
        raise UserError(
            f"{role} is empty; give vectors: an EmbeddingSet, a .npy or Parquet file, …"
        )
    if is_model(where):
        return _embedded(where, role, data, split)
    path = Path(where).expanduser()
    if (path / "vectors.npy").is_file() and not is_coded(path):
        return EmbeddingSet.read(path)
    if path.suffix == ".npy" and path.is_file():
        return _of_npy(path)
    if (path / "config.json").is_file():
        raise UserError(f"{role}={where} is a run whose training has not ended; train it first")
    if not path.exists() and not set("@:?") & set(str(where)):  # names of forms, columns, URIs
        raise UserError(f"{role}={where} does not exist")
    from fct_jax.upgrade.galleries.base import open_gallery

    gallery = open_gallery(where, id_column=id_column, vector_column=vector_column)
    return EmbeddingSet(
        gallery.read(0, len(gallery)),
        gallery.ids,
        meta=gallery.meta,
        name=gallery.name,
        numbered=gallery.numbered,
    )


def _of_npy(path: Path) -> EmbeddingSet:
    """Return a .npy file of vectors, with the ids of NAME_ids.npy beside it where it exists."""
    vectors = _load(path)
    beside = path.with_name(f"{path.stem}_ids.npy")
    numbered = not beside.is_file()
    rows = len(vectors) if vectors.ndim else 0
    ids = np.arange(rows) if numbered else np.asarray(_load(beside))
    found = EmbeddingSet(vectors, ids, name=str(path), numbered=numbered)
    found.check()
    return found


def _embedded(where, role: str, data, split: str) -> EmbeddingSet:
    if data is None:
        raise UserError(
            f"{role}={where} is a model; name the images that it embeds (data), or give vectors"
        )
    from fct_jax import config as configs
    from fct_jax.embed.images import embeddings_of

    config = configs.evaluate()
    config.data = data
    return embeddings_of(str(where), role, config, split)


def names_in(text: str, role: str) -> dict[str, str]:
    """Return the names that a user gives to several things, ``NAME=WHERE,NAME=WHERE``.

    Raises UserError, with ``role`` for the message, for a part of another form and a name given
    twice.

    >>> names_in("bct=runs/bct, fct=map", "models")
    {'bct': 'runs/bct', 'fct': 'map'}
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, where = (piece.strip() for piece in part.partition("="))
        if not name or not where:
            raise UserError(f"{role} holds {part!r}; write NAME=WHERE,NAME=WHERE")
        if name in found:
            raise UserError(f"{role} names {name!r} twice")
        found[name] = where
    return found


def classifier_of(where, role: str = "classifier") -> np.ndarray | None:
    """Return the classifier (C, D) of a run, an array, or a ``.npy`` file; None if there is none.

    Raises UserError for anything else, or another shape.
    """
    if where is None or (isinstance(where, str) and not where):
        return None
    if isinstance(where, str | Path) and is_run(where):
        from fct_jax.frozen.model import load_model

        weights = load_model(where).classifier
        if weights is None:
            raise UserError(f"{role}={where} is a run whose model has no classifier")
    else:
        weights = array_of(where, role)
    if weights.ndim != 2 or weights.dtype.kind != "f":
        raise UserError(
            f"{role} must be floats of shape (C, D), not {weights.dtype} {weights.shape}"
        )
    return weights


def array_of(where, role: str) -> np.ndarray | None:
    """Return an array, or the array in a ``.npy`` file; None for None and ""."""
    if where is None or (isinstance(where, str) and not where):
        return None
    if isinstance(where, str | Path):
        return np.asarray(_load(Path(where).expanduser()))
    array = np.asarray(where)
    if array.dtype == object:
        raise UserError(f"{role} must be an array of numbers or text, not {type(where).__name__}")
    return array


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, OSError, EOFError) as error:
        reason = "it is not a .npy array of numbers or text" if "pickle" in str(error) else error
        raise UserError(f"{path} cannot be read: {reason}") from None
