"""Scores of person and face test sets, beside those of ``compatible_scoring``."""

import numpy as np

from fct_jax.compare.scoring import Score, Scored, group_means
from fct_jax.data.ijb import Media, Pairs, Subjects
from fct_jax.errors import UserError
from fct_jax.evaluate.protocols.reid import k_reciprocal_rerank, market1501_per_query
from fct_jax.evaluate.protocols.verification import (
    identification_per_probe,
    pair_scores,
    pool_templates,
    tar_at_far,
    tpir_at_fpir,
)

KS = (1, 5, 10)


def persons(
    query_ids, gallery_ids, query_cameras, gallery_cameras, *, rerank: bool = False, groups=None
) -> Score:
    """Market-1501: mAP and CMC-1/5/10, what the query's camera saw of its person removed.

    Both sides are normalised (the published code leaves an old gallery raw).

    Args:
      query_ids, query_cameras: (Q,);  gallery_ids, gallery_cameras: (G,).
      rerank: distances by k-reciprocal re-ranking instead of plain ones.
      groups: (Q,) of the queries; None: their cameras.
    """
    groups = query_cameras if groups is None else groups

    def score(query, gallery) -> Scored:
        if rerank:
            distances = k_reciprocal_rerank(query, gallery)
        else:
            distances = 1 - _normalized(query) @ _normalized(gallery).T
        aps, ranks = market1501_per_query(
            distances, query_ids, gallery_ids, query_cameras, gallery_cameras
        )
        valid = ranks > 0
        more = {f"cmc@{k}": float((ranks[valid] <= k).mean()) for k in KS}
        by_group = group_means(aps, groups)
        return Scored(float(aps[valid].mean()), ranks[valid] == 1, by_group, more)

    return score


def faces(
    media: Media,
    rows,
    pairs: Pairs,
    gallery: Subjects,
    probe: Subjects,
    *,
    weights=None,
    normalize: bool = False,
    groups=None,
) -> Score:
    """IJB-B or IJB-C: mAP, top-1/5/10 and TPIR at FPIR of 1:N identification, TAR at FAR of 1:1
    verification.

    The score's query and gallery both hold a vector of every image. First templates of pairs and
    probes are pooled from the query's, second templates and the gallery of persons from the
    gallery's.

    Args:
      media: images by template and medium.
      rows: (N,) the row of each of its images among the vectors.
      pairs: of 1:1 verification.
      gallery, probe: of 1:N identification.
      weights, normalize: of the images in their templates, see `pool_templates`.
      groups: (P,) of the probe templates.
    """
    rows = np.asarray(rows)

    def pooled(vectors):
        if len(vectors) <= rows.max():
            raise UserError(f"{rows.max() + 1} face images need as many vectors: {len(vectors)}")
        found, of = np.asarray(vectors)[rows], (media.templates, media.media)
        return pool_templates(found, *of, weights=weights, normalize=normalize)

    def score(query, search) -> Scored:
        ids, asked = pooled(query)
        searched = asked if search is query else pooled(search)[1]
        # Verification by one list of vectors: the second templates lie behind the first.
        offset = int(ids.max()) + 1
        both = np.concatenate([ids, ids + offset]), np.concatenate([asked, searched])
        scores = pair_scores(*both, pairs.first, pairs.second + offset)
        found = identification_per_probe(
            _of(ids, asked, probe), probe.subjects, _of(ids, searched, gallery), gallery.subjects
        )
        mated = found.rank > 0
        more = {f"top@{k}": float((found.rank[mated] <= k).mean()) for k in KS}
        more |= tpir_at_fpir(found) | tar_at_far(scores, pairs.same)
        mean_ap, by_group = float(found.ap[mated].mean()), group_means(found.ap, groups)
        return Scored(mean_ap, found.rank[mated] == 1, by_group, more)

    return score


def _of(ids, vectors, wanted: Subjects) -> np.ndarray:
    """The vectors of some templates."""
    missing = np.setdiff1d(wanted.templates, ids)
    if missing.size:
        raise UserError(
            f"{missing.size} templates of the persons' lists have no image, "
            f"first {missing[:10].tolist()}"
        )
    return vectors[np.searchsorted(ids, wanted.templates)]


def _normalized(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
