"""Dead models are told from living ones, however few the items or the classes."""

import numpy as np
import pytest

from fct_jax import upgrade
from fct_jax.errors import UserError
from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.checks.degenerate import check_degenerate, effective_rank

RNG = np.random.default_rng(0)


def kinds(vectors, **options):
    return [finding.kind for finding in check_degenerate(vectors, **options)]


def classes(count, spread, items=600, dim=64):
    centres = RNG.normal(size=(count, dim))
    labels = RNG.integers(0, count, items)
    return centres[labels] + spread * RNG.normal(size=(items, dim))


def test_effective_rank_is_that_of_equal_shares():
    assert effective_rank(np.eye(6)) == pytest.approx(6)
    assert effective_rank(np.outer(np.arange(5), np.ones(3))) == pytest.approx(1)
    shares = np.array([0.5, 0.25, 0.25])
    rank = effective_rank(np.diag(np.sqrt(shares)))
    assert rank == pytest.approx(np.exp(-np.sum(shares * np.log(shares))))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("name", ["old", "new", "query_old", "query_new"])
def test_real_vectors_live(text, name, metric):
    assert kinds(text[name], metric=metric) == []
    assert kinds(text[name][:20], metric=metric) == []


def test_digits_live():
    datasets = pytest.importorskip("sklearn.datasets", reason="the digits come with scikit-learn")
    digits = datasets.load_digits()
    assert kinds(digits.data) == kinds(digits.data, metric="l2") == []
    for count in (2, 3, 5):  # few classes
        assert kinds(digits.data[digits.target < count]) == []


@pytest.mark.parametrize("count", [2, 3, 4, 6, 10])
@pytest.mark.parametrize("spread", [0.02, 0.2, 1.0])
def test_few_classes_live(count, spread):
    reference = RNG.normal(size=(600, 64))
    assert kinds(classes(count, spread), reference=reference) == []


def test_dead_vectors_are_found(text):
    new, old = text["new"].astype(np.float64), text["old"]
    count = len(new)
    dead = {
        "constant": (np.ones((count, 8)), "not varied"),
        "nearly constant": (1 + 1e-3 * RNG.normal(size=(count, 8)), "not varied"),
        "two dimensions": (new[:, [3, 50]], "low rank"),
        "four dimensions": (new[:, [3, 50, 7, 200]], "low rank"),
        "four dimensions, turned": (new[:, :4] @ RNG.normal(size=(4, 384)), "low rank"),
        "copies": (new[RNG.integers(0, 10, count)], "copies"),
    }
    for what, (vectors, kind) in dead.items():
        assert kinds(vectors, reference=old) == [kind], what
    hubs = np.vstack([0.01 * RNG.normal(size=(5, 64)), 3 * RNG.normal(size=(995, 64))])
    assert kinds(hubs, metric="l2") == ["hubs"]
    # A rank is not low if the other model's is hardly higher, or is unknown.
    assert kinds(new[:, :4], reference=new[:, :6]) == kinds(new[:, :4]) == []


def test_fit_refuses_a_dead_model(text):
    old, new = text["old"], text["new"].astype(np.float32)
    for vectors, message in (
        (
            np.ones_like(new),
            "the new model is degenerate, by 500 vectors: not varied: .* by 0",
        ),
        (new[:, :4], "have 3.9 effective dimensions, against 162.1 of the other"),
    ):
        with pytest.raises(UserError, match=message) as error:
            upgrade.fit(old, vectors, method="ridge")
        assert "\n" not in str(error.value)
    # Constant old vectors once gave NumPy warnings, and then NaN in the gallery.
    with pytest.raises(UserError, match="the old model is degenerate, .*not varied"):
        upgrade.fit(np.ones_like(old), new)
    with pytest.raises(UserError, match="the new model is degenerate"):
        upgrade.fit(old, np.ones_like(new), direction="backward")
    # An old model of low rank is a reason to upgrade.
    poor = old[:, :4].astype(np.float32) @ RNG.normal(size=(4, 256)).astype(np.float32)
    assert upgrade.fit(poor, new, method="ridge").method == "ridge"


def test_small_samples_are_fitted(text):
    few = [EmbeddingSet.of(text[role][:25]) for role in ("old", "new")]
    assert upgrade.fit(*few, method="procrustes").description["pairs"] == 20
