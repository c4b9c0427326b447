"""Neighbours that are lost by storing vectors in fewer bits, against plain loops."""

import numpy as np
import pytest

from fct_jax.errors import UserError
from fct_jax.upgrade.assessment.stored_types import recall_by_type
from fct_jax.upgrade.galleries.stored import TYPES, Coding


def after(name, vectors):
    """Return vectors as they are after storing."""
    coding = Coding(TYPES[name])
    coding.learn(vectors)
    return coding.decode(coding.encode(vectors))


def nearest(query, vectors, metric):
    if metric == "cosine":
        score = -(vectors @ query) / np.linalg.norm(vectors, axis=1)
    else:
        score = ((vectors - query) ** 2).sum(axis=1)
    return set(np.argsort(score, kind="stable")[:10].tolist())


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_recall_by_definition(metric):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 24)).astype(np.float32)
    queries = rng.standard_normal((40, 24)).astype(np.float32)
    found = recall_by_type(vectors, queries, metric)
    assert list(found) == ["float16", "int8", "binary"]
    for name, recall in found.items():
        stored = after(name, vectors)
        how = "cosine" if name == "binary" else metric
        kept = [len(nearest(q, vectors, metric) & nearest(q, stored, how)) for q in queries]
        assert recall == pytest.approx(np.mean(kept) / 10, abs=0.01)
    assert found["float16"] > found["int8"] > found["binary"]


def test_the_own_item_is_no_neighbour():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 3)).astype(np.float32)
    vectors[20:] *= 1e5  # float16 cannot hold them
    own = np.arange(40)[::-1]
    found = recall_by_type(vectors, vectors[::-1], "l2", own)
    assert list(found) == ["int8"]  # three signs fill no byte
    stored, kept = after("int8", vectors), []
    for row, query in enumerate(vectors):
        far = np.where(np.arange(40)[:, None] == row, np.float32(np.inf), 0)
        kept.append(len(nearest(query, vectors + far, "l2") & nearest(query, stored + far, "l2")))
    assert found["int8"] == pytest.approx(np.mean(kept) / 10, abs=0.01)
    assert recall_by_type(vectors[:1], vectors[:1], "l2", own[-1:]) == {}


def test_stored_values():
    rng = np.random.default_rng(1)
    vectors = (rng.standard_normal((500, 8)) * [1, 10, 1e-3, 0, 5, 100, 1, 1] + 3).astype("f4")
    rounded = after("int8", vectors)
    assert max(len(np.unique(column)) for column in rounded.T) <= 255
    spread = np.ptp(vectors, axis=0)
    assert (np.abs(rounded - vectors) <= spread / 508 + 1e-5).all()
    signs = after("binary", vectors - 3)
    assert set(np.unique(np.sign(signs))) == {-1, 1}
    assert list(recall_by_type(vectors[:, :6], vectors[:9, :6], "l2")) == ["float16", "int8"]


def test_a_dimension_that_was_constant_is_clipped_and_counted():
    vectors = np.random.default_rng(0).standard_normal((300, 24)).astype(np.float32)
    vectors[:, 5] = 0.25
    coding = Coding(TYPES["int8"])
    coding.learn(vectors)
    np.testing.assert_allclose(after("int8", vectors)[:, 5], 0.25)
    assert coding.clipped(vectors).sum() == 0
    later = vectors[:2].copy()
    later[:, 5] = 0.5, 100
    assert coding.clipped(later).tolist() == [0, 1]
    assert coding.decode(coding.encode(later))[0, 5] == pytest.approx(0.5, abs=0.05)


def test_scales_need_vectors():
    with pytest.raises(UserError, match="no row has a usable one"):
        Coding(TYPES["int8"]).learn(None, np.empty((0, 4), np.float32))
