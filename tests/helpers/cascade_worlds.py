"""Small galleries and queries by two models, for searches in two stages."""

import numpy as np


def world(seed, queries=6, count=40, do=3, dn=5):
    rng = np.random.default_rng(seed)
    sizes = {"old": (count, do), "new": (count, dn)}
    sizes |= {"query_old": (queries, do), "query_new": (queries, dn)}
    # Few different values give ties.
    return {
        name: rng.integers(-2, 3, size).astype(np.float32) + np.float32(0.5)
        for name, size in sizes.items()
    }


def distinct(seed, queries=7, count=50):
    rng = np.random.default_rng(seed)
    made = {"old": (count, 4), "new": (count, 6), "query_old": (queries, 4)}
    made["query_new"] = (queries, 6)
    return {name: rng.normal(size=size).astype(np.float32) for name, size in made.items()}, rng
