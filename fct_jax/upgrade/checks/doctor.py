"""Examination of a file of vectors: its facts, its faults, and what the vectors probably are."""

from __future__ import annotations

import dataclasses

import numpy as np

from fct_jax.errors import UserError
from fct_jax.runtime.progress import Bar
from fct_jax.runtime.threads import single
from fct_jax.storage.ids import first_ten
from fct_jax.upgrade.checks.degenerate import Finding, check_degenerate
from fct_jax.upgrade.checks.mixed import mixed_spaces
from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.galleries.quarantine import REPEATED
from fct_jax.upgrade.stores import is_store
from fct_jax.upgrade.stores.samples import SAMPLE, Drawn, opened

_BLOCK = 1 << 14
_SAMPLE = 4000  # rows that are searched for structure
_UNIT = 5e-3  # tolerance for the length of a unit vector stored as float16
_CUT = (0.3, 0.995)  # mean length of vectors cut from longer unit vectors
_STEADY = 0.15  # largest relative spread of the lengths of cut vectors
_STEM = 0.02  # share of equal vectors that is worth reporting

# dimension -> models that are known to give such vectors; only hints
_KNOWN_DIMENSIONS = {
    256: "WordLlama, Matryoshka cuts",
    384: "all-MiniLM-L6, bge-small, e5-small, gte-small",
    512: "CLIP ViT-B/32, ResNet-18/34, Matryoshka cuts",
    768: "BERT-base, all-mpnet-base, bge-base, e5-base, CLIP ViT-L/14",
    1024: "bge-large, e5-large, bge-m3, ViT-L",
    1536: "text-embedding-ada-002, text-embedding-3-small",
    2048: "ResNet-50",
    3072: "text-embedding-3-large, gemini-embedding",
}


@dataclasses.dataclass(frozen=True)
class Examination:
    """Facts and findings about a file of vectors.

    Attributes:
      name, form: place of the vectors, and their form.
      rows, dim, dtype: number of vectors with the bad ones, their size, and their stored type.
      looked_at: number of rows that were read: all, or a sample of a store.
      lengths: lengths of the shortest, the mean and the longest vector.
      likely: a sentence about what the vectors probably are.
      findings: faults that should be examined, if any.
    """

    name: str
    form: str
    rows: int
    dim: int
    dtype: str
    lengths: tuple[float, float, float]
    likely: str
    findings: list[Finding]
    looked_at: int = 0

    def to_json(self) -> dict:
        """Return all attributes as JSON values."""
        return dataclasses.asdict(self)


def examine(
    where,
    *,
    id_column: str | None = None,
    vector_column: str | None = None,
    sample: int = SAMPLE,
) -> Examination:
    """Read every vector once, or a sample of a store, and return an `Examination`.

    Args:
      where: a gallery of any form that ``open_gallery`` reads, or the URI of a store.
      id_column, vector_column: names of columns; None: found.
      sample: rows that are drawn in a store.

    Raises:
      UserError: if nothing can be read there.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.save(f"{folder}/vectors.npy", np.eye(4, 3, dtype=np.float32))
      ...     [found.text for found in examine(f"{folder}/vectors.npy").findings]
      ['1 row has no usable vector (zero): 1 id (3)']
    """
    if is_store(where):
        with opened(where) as store:
            return dataclasses.replace(_examined(Drawn(store, sample)), rows=store.count())
    gallery = open_gallery(
        where,
        id_column=id_column,
        vector_column=vector_column,
        on_bad="quarantine",
        duplicates="last",
        unfinished=True,
    )
    return _examined(gallery)


def _examined(gallery) -> Examination:
    count = len(gallery)
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:_SAMPLE])
    lengths, hashes, sample = [], [], []
    start = 0
    with Bar("reading", count, "vectors") as bar:
        for ids, vectors in gallery.blocks(_BLOCK):
            good = gallery.screen(start, vectors)
            here = chosen[(chosen >= start) & (chosen < start + len(ids))] - start
            sample.append(vectors[here[good[here]]])
            vectors = vectors[good]
            lengths.append(np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)))
            hashes.append(_hashes(vectors))
            start += len(ids)
            bar.advance(len(ids))
    length, hashed = np.concatenate(lengths), np.concatenate(hashes)
    if not len(length):
        raise UserError(f"{gallery.name} holds no usable vector: {gallery.bad.summary()}")
    findings = [*_bad_rows(gallery), *_equal(hashed), *_lengths(length, gallery.meta)]
    with single():
        findings += _structure(np.concatenate(sample))
    return Examination(
        name=gallery.name,
        form=gallery.form,
        rows=count + gallery.bad.counts.get(REPEATED, 0),
        dim=gallery.dim,
        dtype=gallery.stored_as.name,
        lengths=(float(length.min()), float(length.mean()), float(length.max())),
        likely=_likely(gallery, length),
        findings=findings,
        looked_at=count,
    )


def _hashes(vectors: np.ndarray) -> np.ndarray:
    from fct_jax.upgrade.inputs import row_hashes

    return row_hashes(vectors)


def _bad_rows(gallery) -> list[Finding]:
    """Return a finding for each reason for which rows cannot be used."""
    found = []
    for reason, count in gallery.bad.counts.items():
        ids = np.array([str(id_) for id_, why, _ in gallery.bad.entries.values() if why == reason])
        rows = "row has" if count == 1 else "rows have"
        what = (
            "an id that another row also has"
            if reason == REPEATED
            else f"no usable vector ({reason})"
        )
        found.append(Finding(reason, count, f"{count:,} {rows} {what}: {first_ten(ids)}"))
    return found


def _equal(hashed: np.ndarray) -> list[Finding]:
    """Return a finding if many rows hold the same vector."""
    _, counts = np.unique(hashed, return_counts=True)
    copies = int(counts[counts > 1].sum())
    if copies <= max(_STEM * len(hashed), 1):
        return []
    text = (
        f"{copies:,} rows share their vector with another row, one vector {counts.max():,} times: "
        "they are copies, or a default for items that could not be embedded"
    )
    return [Finding("equal vectors", copies, text)]


def _lengths(length: np.ndarray, meta: dict) -> list[Finding]:
    """Return findings about lengths: half normalised, cut and not normalised again."""
    unit = np.abs(length - 1) <= _UNIT
    share, mean = unit.mean(), length.mean()
    if share > 0.999:
        return []
    others = int((~unit).sum())
    if share > 0.01:
        text = (
            f"{others:,} of {len(length):,} vectors do not have unit length, but the others do: "
            "were some of them not normalised?"
        )
        return [Finding("mixed lengths", others, text)]
    if _CUT[0] < mean < _CUT[1] and length.std() < _STEADY * mean and length.max() <= 1 + _UNIT:
        text = (
            f"lengths are {length.min():.2f} to {length.max():.2f}, never above 1: these look like "
            "unit vectors that were cut to fewer dimensions (Matryoshka); normalise them again"
        )
        return [Finding("cut", others, text)]
    if meta.get("normalized"):
        text = f"they are declared normalized, but their lengths go up to {length.max():.4g}"
        return [Finding("not normalized", others, text)]
    return []


def _structure(sample: np.ndarray) -> list[Finding]:
    """Return findings about a whole sample: a degenerate model, two mixed models."""

    found = check_degenerate(sample)
    share = None if found else mixed_spaces(sample)
    if share is not None:
        text = (
            f"about {share:.0%} of the vectors lie in a space of their own, unrelated to the "
            "others': two models may be mixed here"
        )
        found.append(Finding("mixed spaces", round(share * len(sample)), text))
    return found


def _likely(gallery, length: np.ndarray) -> str:
    """Return a sentence about what the vectors probably are."""
    unit = (np.abs(length - 1) <= _UNIT).mean() > 0.999
    kind = "unit vectors, compared by cosine" if unit else "vectors of different lengths"
    models = _KNOWN_DIMENSIONS.get(gallery.dim)
    hint = f"; {gallery.dim} dimensions are those of {models}, for example" if models else ""
    return f"{kind}{hint}"
