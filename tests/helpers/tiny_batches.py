"""Sources of small images and their batches, for the tests of the pipeline."""

import itertools

import ml_collections
import numpy as np

from fct_jax.data import open_source


def digits(classes="", split="train"):
    return open_source(ml_collections.ConfigDict({"name": "digits", "classes": classes}), split)


def folder(root, **more):
    return open_source(
        ml_collections.ConfigDict({"name": "folder", "dir": str(root)} | more), "train"
    )


def take(iterator, count=None):
    return list(itertools.islice(iterator, count))


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            np.testing.assert_array_equal(a[key], b[key])
