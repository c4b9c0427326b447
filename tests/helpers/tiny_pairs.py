"""Small samples of pairs for the tests of maps, and the NumPy code that the pages show."""

import re
from pathlib import Path

import numpy as np

from fct_jax.storage.embedding_set import EmbeddingSet
from fct_jax.upgrade.maps.methods import Pairs, Training

REPOSITORY = Path(__file__).parents[2]


def pairs(n=300, do=7, dn=5, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, do)).astype(np.float32)
    y = x @ rng.normal(size=(do, dn)) + 3 + noise * rng.normal(size=(n, dn))
    return x, y.astype(np.float32)


def pairs_of(old, new, labels=None, classifier=None, seed=0, **training):
    training = Training(**{"inner_dim": 8, "epochs": 1, "batch_size": 0, **training})
    return Pairs(old, new, labels, classifier, training, seed)


def sets(n=160, do=6, dn=4, labels=None, seed=0):
    x, y = pairs(n, do, dn, seed=seed)
    old = EmbeddingSet.of(x, labels=labels, meta={"fingerprint": "a", "metric": "cosine"})
    return old, EmbeddingSet.of(y, labels=labels, meta={"fingerprint": "b", "metric": "cosine"})


def check_snippet(folder, vectors, expected):
    """Check that the NumPy code of README.md and of the tutorial does what the map does."""
    pages = [REPOSITORY / "README.md", REPOSITORY / "docs" / "upgrade.md"]
    blocks = [b for p in pages for b in re.findall(r"```python\n(.*?)```", p.read_text(), re.S)]
    found = {block for block in blocks if "load_query_map" in block}
    assert len(found) == 1, "both pages must have the same code"
    code = found.pop()
    assert "jax" not in code and len(code.splitlines()) <= 28
    names = {}
    exec(code, names)
    np.testing.assert_allclose(
        names["load_query_map"](folder / "numpy.safetensors")(vectors), expected, 1e-5, 2e-5
    )
