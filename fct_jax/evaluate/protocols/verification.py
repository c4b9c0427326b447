"""Faces by templates: 1:1 verification and 1:N identification as in IJB-B and IJB-C."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fct_jax.errors import UserError
from fct_jax.evaluate.distances import unit_rows
from fct_jax.storage.ids import first_ten

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
FPIRS = (1e-2, 1e-1)
BLOCK = 1024  # probes or pairs worked on at a time


class Identified(NamedTuple):
    """Ranks of each probe's mates, (P,): the gallery's templates of the same person.

    Attributes:
      rank: rank of the first mate, 1 for the nearest; 0 without a mate.
      ap: average precision; NaN without a mate.
      mate: highest score of a mate; -inf without one.
      other: highest score of another person's template; -inf without one.
    """

    rank: np.ndarray
    ap: np.ndarray
    mate: np.ndarray
    other: np.ndarray


def pool_templates(
    embeddings, templates, media, *, weights=None, normalize: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return one vector for each template (set of images and video frames of one person).

    Embeddings are averaged over each (template, media) first, so that a long video weighs as
    much as a photograph, then over the template, then L2-normalised (IJB-C, ICB 2018).

    Args:
      embeddings: (N, D);  templates, media: (N,) ids of each image.
      weights: (N,) factors of the embeddings, 0 or more, such as a detector's scores; None: all 1.
      normalize: divide every embedding by its length first. Otherwise longer embeddings, which
        many face models give to clear images, weigh more.

    Returns:
      ids (T,) ascending, and vectors (T, D) float32.

    Raises:
      UserError: nothing to pool, different lengths, values that are not finite, weights below 0.
    """
    embeddings = np.asarray(embeddings)
    templates, media = np.asarray(templates), np.asarray(media)
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise UserError(f"embeddings must be (N, D) with N at least 1, not {embeddings.shape}")
    if templates.shape != (len(embeddings),) or media.shape != templates.shape:
        raise UserError(
            f"{len(embeddings)} embeddings need as many template and media ids: "
            f"{templates.shape}, {media.shape}"
        )
    if not np.isfinite(embeddings).all():
        raise UserError("embeddings hold NaN or infinite values")
    embeddings = embeddings.astype(np.float64)
    if normalize:
        embeddings = unit_rows(embeddings)
    if weights is not None:
        weights = np.asarray(weights, np.float64)
        if weights.shape != (len(embeddings),) or not (weights >= 0).all():
            raise UserError(f"{len(embeddings)} embeddings need as many weights, all 0 or more")
        embeddings = embeddings * weights[:, None]
    ids, template = np.unique(templates, return_inverse=True)
    _, medium = np.unique(media, return_inverse=True)
    pairs, pair = np.unique(
        template.astype(np.int64) * (medium.max() + 1) + medium, return_inverse=True
    )
    by_media = _group_mean(embeddings, pair, len(pairs))
    pooled = _group_mean(by_media, pairs // (medium.max() + 1), len(ids))
    return ids, unit_rows(pooled).astype(np.float32)


def pair_scores(ids, vectors, first, second, *, block: int = BLOCK) -> np.ndarray:
    """Return the inner products (P,) of template pairs, given by ids ``first`` and ``second`` (P,).

    Args:
      ids: (T,) sorted template ids and vectors: (T, D), as `pool_templates` gives them.
      block: pairs worked on at a time.

    Raises:
      UserError: a pair names an unknown template.
    """
    ids, vectors = np.asarray(ids), np.asarray(vectors)
    rows = [_lookup(ids, np.asarray(side)) for side in (first, second)]
    scores = np.empty(len(rows[0]), np.float32)
    for start in range(0, len(scores), block):
        part = slice(start, start + block)
        scores[part] = np.einsum("pd,pd->p", vectors[rows[0][part]], vectors[rows[1][part]])
    return scores


def tar_at_far(scores, same, fars: Sequence[float] = FARS) -> dict[str, float]:
    """Return the true accept rate at each false accept rate, such as ``{"tar@far=1e-06": 0.9}``.

    The threshold is the lowest at which the share of different-person pairs accepted does not
    exceed the given rate; published scripts take the nearest point of the curve instead, which
    may lie above it. Equal scores are accepted or rejected together.

    Args:
      scores: (P,), larger is more alike.
      same: (P,) booleans, whether the pair shows one person.

    Raises:
      UserError: lengths that differ, scores that are not finite, no pair of one of the kinds, a
        rate outside [0, 1].
    """
    scores, same = np.asarray(scores), np.asarray(same, bool)
    if scores.ndim != 1 or scores.shape != same.shape:
        raise UserError(f"scores {scores.shape} and same {same.shape} must both be (P,)")
    if not np.isfinite(scores).all():
        raise UserError("scores hold NaN or infinite values")
    genuine, impostor = np.sort(scores[same]), np.sort(scores[~same])[::-1]
    if genuine.size == 0 or impostor.size == 0:
        raise UserError(
            "verification needs pairs of both kinds: "
            f"{genuine.size} of the same person, {impostor.size} of different people"
        )
    report = {}
    for far in fars:
        rejected = _rejected(impostor, far)
        accepted = genuine.size - np.searchsorted(genuine, rejected, side="right")
        report[f"tar@far={far:g}"] = float(accepted / genuine.size)
    return report


def _rejected(impostor: np.ndarray, rate: float) -> float:
    """Return the highest score that is rejected if ``rate`` of the ``impostor`` scores may pass.

    The scores are sorted in descending order. The best score beyond the allowed ones is rejected
    with all its ties. Raises UserError for a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise UserError(f"a false accept rate must be between 0 and 1, not {rate}")
    allowed = int(rate * impostor.size + 1e-9)  # 0.29 * 100 is 28.999… in floating point
    return impostor[allowed] if allowed < impostor.size else -np.inf


def identification(
    probe, probe_ids, gallery, gallery_ids, ks: Sequence[int] = (1, 5, 10), *, block: int = BLOCK
) -> dict[str, float]:
    """Return 1:N identification: ``{"top@1": …, "map": …, "mated": …, "tpir@fpir=0.01": …}``.

    Probes whose person is not in the gallery count only in `tpir_at_fpir`; ``mated`` is
    the share of the others. Equal scores rank the lower gallery row first in top@k and share one
    threshold in the mAP.

    Args:
      probe: (P, D), gallery: (G, D), compared by inner product (L2-normalise for the cosine);
      probe_ids: (P,), gallery_ids: (G,) person ids.
      block: probes worked on at a time.

    Raises:
      UserError: shapes that do not fit, values that are not finite, no probe with a mate.
    """
    found = identification_per_probe(probe, probe_ids, gallery, gallery_ids, block=block)
    mated = found.rank > 0
    report = {f"top@{k}": float((found.rank[mated] <= k).mean()) for k in ks}
    report |= {"map": float(found.ap[mated].mean()), "mated": float(mated.mean())}
    return report | tpir_at_fpir(found)


def tpir_at_fpir(found: Identified, fpirs: Sequence[float] = FPIRS) -> dict[str, float]:
    """Return true at false positive identification rates, ``{"tpir@fpir=0.01": …, …}``.

    A probe is found if a mate has rank 1 and a score above the threshold; the TPIR is the share
    of found probes among those with mates. Every probe also searches the gallery without its
    mates: the
    threshold is the lowest at which the share of these searches that return something does not
    exceed the FPIR. Equal scores are accepted or rejected together.

    Raises:
      UserError: a rate outside [0, 1].

    Source: Maze et al., "IARPA Janus Benchmark – C", ICB 2018 (open-set identification).
    """
    impostor, mated = np.sort(found.other)[::-1], found.rank > 0
    report = {}
    for fpir in fpirs:
        accepted = (found.rank == 1) & (found.mate > _rejected(impostor, fpir))
        report[f"tpir@fpir={fpir:g}"] = float(accepted[mated].mean())
    return report


def identification_per_probe(
    probe, probe_ids, gallery, gallery_ids, *, block: int = BLOCK
) -> Identified:
    """Return the results of each probe that `identification` averages, with its arguments."""
    probe, gallery = np.asarray(probe, np.float32), np.asarray(gallery, np.float32)
    probe_ids, gallery_ids = np.asarray(probe_ids), np.asarray(gallery_ids)
    if probe.ndim != 2 or gallery.ndim != 2 or probe.shape[1] != gallery.shape[1]:
        raise UserError(f"probe {probe.shape} and gallery {gallery.shape} must be (n, D) alike")
    if probe_ids.shape != probe.shape[:1] or gallery_ids.shape != gallery.shape[:1]:
        raise UserError("every probe and gallery template needs one person id")
    if not (np.isfinite(probe).all() and np.isfinite(gallery).all()):
        raise UserError("probe or gallery vectors hold NaN or infinite values")
    if not np.isin(probe_ids, gallery_ids).any():
        raise UserError("no probe has its person in the gallery")

    found = Identified(
        np.zeros(len(probe), np.int64),
        np.full(len(probe), np.nan),
        *np.full((2, len(probe)), -np.inf),
    )
    for start in range(0, len(probe), block):
        scores = probe[start : start + block] @ gallery.T
        for row, score in enumerate(scores, start):
            same = gallery_ids == probe_ids[row]
            found.other[row] = score[~same].max(initial=-np.inf)
            if not same.any():
                continue
            mate = np.flatnonzero(same)
            best = mate[np.argmax(score[mate])]
            before = (score > score[best]).sum() + (score[:best] == score[best]).sum()
            found.rank[row], found.mate[row] = 1 + before, score[best]
            found.ap[row] = _average_precision(score, score[mate])
    return found


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the mean over positives of the precision among all scores at least as high."""
    scores, positive = np.sort(scores), np.sort(positive)
    above = len(scores) - np.searchsorted(scores, positive, side="left")
    hits = len(positive) - np.searchsorted(positive, positive, side="left")
    return float((hits / above).mean())


def _group_mean(values: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """Return the mean (count, D) of the rows of each group; every group has a row."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=count)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return np.add.reduceat(values[order], starts, axis=0) / sizes[:, None]


def _lookup(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    missing = np.unique(wanted[ids[rows] != wanted])
    if missing.size:
        raise UserError(
            f"templates of the pair list have no embedding: {first_ten(missing, 'template')}"
        )
    return rows
