"""EmbeddingSet: vectors on disk with the facts that are needed to use them correctly.

It is a directory of plain NumPy files, so that any tool can write or read it:

    vectors.npy      (N, D) float32 or float16, opened memory-mapped
    ids.npy          (N,)   integers or text, unique
    labels.npy       (N,)   integers, optional
    uncertainty.npy  (N,)   float32 log-variances, optional
    meta.json        fingerprint, dimension, count, metric, normalized, format_version, …,
                     and the CRC-32 of every file: of vectors.npy shard by shard

Only ``vectors.npy`` is required: ids default to the row numbers, and a set
without ``meta.json`` has an unknown fingerprint, which matches any other.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError
from fct_jax.storage import checksums, spilled
from fct_jax.storage.files import new_directory
from fct_jax.storage.ids import repeated

FORMAT_VERSION = 1
_COMPANIONS = ("ids.npy", "labels.npy", "uncertainty.npy")
_BLOCK = 1 << 12  # rows looked at together, few enough for a processor's cache


@dataclasses.dataclass(frozen=True)
class EmbeddingSet:
    """N embeddings of dimension D with ids and, if known, labels and uncertainties.

    Attributes:
      vectors: (N, D) float32 or float16; read from disk it is a memory map.
      ids: (N,) integers or text.
      labels: (N,) integers or None.
      uncertainty: (N,) float32 log-variances of a FastFill transformation, or None.
      meta: other known facts; ``fingerprint`` identifies the model of the vectors.
      name: source of the set, for messages.
      numbered: whether the ids are row numbers, because none were given.

    >>> import tempfile
    >>> made = EmbeddingSet.of([[1.0, 0.0], [0.0, 1.0]], ids=["a", "b"], labels=np.array([3, 5]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = EmbeddingSet.read(made.write(Path(folder) / "set"))
    ...     len(found), found.dim, found.labels.tolist()
    (2, 2, [3, 5])
    """

    vectors: np.ndarray
    ids: np.ndarray
    labels: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    meta: dict = dataclasses.field(default_factory=dict)
    name: str = "EmbeddingSet"
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dim(self) -> int:
        return self.vectors.shape[1]

    @property
    def fingerprint(self) -> str | None:
        """Return the fingerprint of the vectors' model, or None."""
        return self.meta.get("fingerprint")

    @classmethod
    def of(cls, vectors, ids=None, labels=None, uncertainty=None, meta=None) -> "EmbeddingSet":
        """Make an EmbeddingSet from arrays; ids default to the row numbers."""
        vectors, numbered = np.asarray(vectors), ids is None
        ids = np.arange(len(vectors) if vectors.ndim else 0) if numbered else np.asarray(ids)
        made = cls(vectors, ids, labels, uncertainty, dict(meta or {}), numbered=numbered)
        made.check()
        return made

    @classmethod
    def read(
        cls,
        path,
        unfinished: bool = False,
        verify: bool = True,
        unique: bool = True,
        coded: bool = False,
    ) -> "EmbeddingSet":
        """Open a directory; vectors stay on disk. Raises UserError if it is faulty.

        Args:
          path: the directory.
          unfinished: also open a gallery whose re-embedding is unfinished.
          verify: read every file once and compare it with its checksum, at about the speed of
            the disk; False only checks that every row exists.
          unique: refuse repeated ids; False is for callers that handle them.
          coded: also open a gallery whose vectors are bytes or bits; the caller decodes them.
        """
        path = Path(path)
        if not (path / "vectors.npy").is_file():
            raise UserError(f"no EmbeddingSet in {path}: vectors.npy is missing")
        meta = _read_meta(path)
        check_state(str(path), meta, unfinished)
        checksums.check_whole(path, meta)
        if verify:
            checksums.check_content(path, meta)
        vectors = _load(path / "vectors.npy", mmap=True)
        ids = _load(path / "ids.npy")
        found = cls(
            vectors=vectors,
            ids=np.arange(len(vectors)) if ids is None else ids,
            labels=_load(path / "labels.npy"),
            uncertainty=_load(path / "uncertainty.npy"),
            meta=meta,
            name=str(path),
            numbered=ids is None,
        )
        codes = _codes(meta)
        if codes and not coded:
            kind = codes.get("type")
            raise UserError(f"{path} holds vectors stored as {kind}; open_gallery decodes them")
        found.check(unique, bool(codes))
        if meta.get("count", len(found)) != len(found):
            raise UserError(f"{path} is incomplete: {len(found)} rows of {meta['count']}")
        if not codes and meta.get("dimension", found.dim) != found.dim:
            raise UserError(f"{path} holds dimension {found.dim}; meta.json: {meta['dimension']}")
        if meta.get("dtype", str(vectors.dtype)) != str(vectors.dtype):
            raise UserError(f"{path} holds {vectors.dtype} vectors; meta.json: {meta['dtype']}")
        return found

    def write(self, path) -> Path:
        """Write the directory, completely or not at all; an existing one is never overwritten."""
        self.check()
        with new_directory(path) as folder:
            np.save(folder / "vectors.npy", np.ascontiguousarray(self.vectors))
            self.write_companions(folder)
        return Path(path)

    def write_companions(self, folder: Path, shards: list[dict] | None = None) -> None:
        """Write all files but the vectors, and the uncertainty unless a stream writes it (None).

        Args:
          folder: the folder of ``vectors.npy``.
          shards: shards for ``meta.json``; None: they are read from ``vectors.npy``.
        """
        np.save(folder / "ids.npy", self.ids)
        if self.labels is not None:
            np.save(folder / "labels.npy", np.asarray(self.labels))
        if self.uncertainty is not None:
            np.save(folder / "uncertainty.npy", np.asarray(self.uncertainty, np.float32))
        meta = {
            "metric": "l2",
            "normalized": False,
            "fingerprint": None,
            **self.meta,
            "format_version": FORMAT_VERSION,
            "count": len(self),
            "dimension": self.dim,
            "dtype": str(self.vectors.dtype),
            "shards": checksums.shards_of(folder / "vectors.npy") if shards is None else shards,
            "checksums": {
                name: checksums.of_file(folder / name)
                for name in _COMPANIONS
                if (folder / name).is_file()
            },
        }
        (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")

    def check(self, unique: bool = True, coded: bool = False) -> None:
        """Check shapes, types, and, if ``unique``, that no id is repeated. Raises UserError."""
        if self.vectors.ndim != 2 or self.vectors.dtype.kind not in ("iu" if coded else "f"):
            raise UserError(
                f"{self.name}: vectors must be (N, D) floats, "
                f"not {self.vectors.shape} {self.vectors.dtype}"
            )
        if 0 in self.vectors.shape:
            raise UserError(f"{self.name} is empty: shape {self.vectors.shape}")
        for what in ("ids", "labels", "uncertainty"):
            values = getattr(self, what)
            if values is not None and np.shape(values) != (len(self),):
                raise UserError(
                    f"{self.name}: {what} have shape {np.shape(values)}, "
                    f"but there are {len(self)} vectors"
                )
        if self.ids.dtype.kind not in "iuU":
            raise UserError(f"{self.name}: ids must be integers or text, not {self.ids.dtype}")
        if self.labels is not None and np.asarray(self.labels).dtype.kind not in "iu":
            raise UserError(f"{self.name}: labels must be integers")
        if unique:
            check_ids(self.name, self.ids)

    def check_finite(self) -> None:
        """Read every vector once. Raises UserError that names the first bad row."""
        for start in range(0, len(self), _BLOCK):
            finite = _are_finite(self.vectors[start : start + _BLOCK])
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise UserError(f"{self.name}: the vector of id {self.ids[row]} is not finite")
        if self.uncertainty is not None and not np.isfinite(self.uncertainty).all():
            row = int(np.argmin(np.isfinite(self.uncertainty)))
            raise UserError(f"{self.name}: the uncertainty of id {self.ids[row]} is not finite")


def _are_finite(vectors) -> np.ndarray:
    """Return whether the numbers of each row (n, D) are finite, (n,) bool."""
    vectors = np.asarray(vectors)
    if vectors.dtype == np.float16:  # NumPy converts each number; its bits say the same
        return (vectors.view(np.uint16) & 0x7FFF).max(axis=1, initial=0) < 0x7C00
    return np.isfinite(vectors).all(axis=1)


def is_coded(path: Path) -> bool:
    """Return whether a directory's vectors are stored as bytes or bits, which must be decoded."""
    return bool(_codes(_read_meta(path)))


def _codes(meta: dict) -> dict | None:
    found = meta.get("stored")  # of another program, it may be anything
    return found if isinstance(found, dict) else None


def check_ids(name: str, ids: np.ndarray) -> None:
    """Raise UserError, with their number and the first ten, if ids are repeated."""
    found = repeated(ids)
    if len(found):
        others = f"; so do {len(found) - 1} others: " if len(found) > 1 else ""
        others += ", ".join(str(i) for i in found[1:10])
        others += ", …" if len(found) > 10 else ""
        raise UserError(f"{name}: id {found[0]} occurs more than once{others}")


def check_state(name: str, meta: dict, unfinished: bool = False) -> None:
    """Check by ``state`` in ``meta.json`` that a gallery may be read.

    "translating" (rows are missing) may never be read; "migrating" (part of the planned vectors are
    new) only if ``unfinished`` allows it; "translated" and "finished" always. Raises UserError.
    """
    state = meta.get("state")
    if state in (None, "translated", "finished") or (state == "migrating" and unfinished):
        return
    done, planned = meta.get("reembedded", 0), meta.get("planned", "?")
    raise UserError(
        f"{name} is an unfinished gallery ({state}: {done} of {planned} planned vectors "
        "re-embedded); run `fct-jax apply` again to finish it"
        + ("" if state != "migrating" else ", or open it with unfinished=True")
    )


def check_paired(first: EmbeddingSet, second: EmbeddingSet) -> None:
    """Raise UserError unless both sets hold the same items in the same order."""
    if len(first) != len(second):
        raise UserError(
            f"{first.name} has {len(first)} vectors and {second.name} has {len(second)}; "
            "both must hold the same items"
        )
    differ = np.asarray(first.ids != second.ids)
    if differ.any():
        row = int(np.argmax(differ))
        raise UserError(
            f"row {row} is id {first.ids[row]} in {first.name} "
            f"and id {second.ids[row]} in {second.name}; both must hold the same items in order"
        )
    if first.labels is not None and second.labels is not None:
        differ = np.asarray(first.labels) != np.asarray(second.labels)
        if differ.any():
            row = int(np.argmax(differ))
            raise UserError(
                f"id {first.ids[row]} has label {first.labels[row]} in {first.name} "
                f"and {second.labels[row]} in {second.name}"
            )


def check_fingerprint(found: EmbeddingSet, expected: str | None, role: str) -> None:
    """Raise UserError if the set is known to come from a model other than the expected one."""
    if found.fingerprint and expected and found.fingerprint != expected:
        raise UserError(
            f"{found.name} comes from model {found.fingerprint}, but the {role} model is {expected}"
        )


def _read_meta(path: Path) -> dict:
    """Return the ``meta.json`` of a directory, or {} if there is none."""
    file = path / "meta.json"
    if not file.is_file():
        return {}
    try:
        meta = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(meta, dict):
        raise UserError(f"{file} cannot be read: it does not hold a JSON object")
    if meta.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {meta['format_version']}; "
            f"this fct_jax reads versions up to {FORMAT_VERSION}"
        )
    return meta


def _load(path: Path, mmap: bool = False) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False) if mmap else spilled.load(path)
    except checksums.UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from None
