"""Subsets of a training set for an old and a new model: the published draws, renumbered."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from fct_jax import data
from fct_jax.data.splits import split_by_class, split_by_data
from fct_jax.data.subset import Subset, for_validation, parse_subset
from fct_jax.embed.images import source_config
from fct_jax.errors import UserError


def digits(subset="", split="train", **changes):
    config = ConfigDict({"name": "digits", "classes": "", "subset": subset, **changes})
    return data.open_source(source_config(config, split), split)


@pytest.mark.parametrize("seed", [666, 3])
@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_classes_are_those_of_the_published_split(ratio, seed):
    every = digits()
    split = split_by_class(every.labels, ratio, seed)
    old, new = (digits(f"{part} classes {ratio} seed {seed}") for part in ("old", "new"))
    assert sorted(old.ids) == sorted(every.ids[split.old])
    np.testing.assert_array_equal(new.ids, every.ids)
    np.testing.assert_array_equal(new.labels, split.labels)
    np.testing.assert_array_equal(old.labels, new.labels[np.isin(new.ids, old.ids)])
    assert (old.num_classes, new.num_classes) == (split.num_old, 10)
    assert old.class_names == new.class_names[: split.num_old]
    # The image belongs to the class that the number now stands for.
    for source in (old, new):
        for row in (0, 7):
            item = source[row]
            original = every[int(np.flatnonzero(every.ids == source.ids[row])[0])]
            assert item["label"] == source.labels[row]
            assert source.class_names[item["label"]] == str(original["label"])
            np.testing.assert_array_equal(item["image"], original["image"])
    validation = digits(f"old classes {ratio} seed {seed}", "validation")
    assert len(validation) == 797 and validation.class_names == new.class_names


def test_images_are_those_of_the_published_split():
    every = digits()
    old = digits("old images 0.3")
    drawn = split_by_data(every.labels, 0.3, 666).old
    np.testing.assert_array_equal(old.ids, every.ids[np.sort(drawn)])
    np.testing.assert_array_equal(old.labels, every.labels[np.sort(drawn)])
    assert old.num_classes == 10
    np.testing.assert_array_equal(digits("new images 0.3").ids, every.ids)
    assert len(digits("old images 0.3", "validation")) == 797


def test_text():
    assert parse_subset("") is None
    assert parse_subset(" old  classes .3 ") == Subset("old", "classes", 0.3, 666)
    assert parse_subset("new images 0.25 seed 7") == Subset("new", "images", 0.25, 7)
    assert for_validation("old classes 0.3 seed 7") == "new classes 0.3 seed 7"
    assert for_validation("old images 0.3") == for_validation("") == ""


@pytest.mark.parametrize("text", ["old", "old classes 30", "old classes 0.0", "all images 0.3"])
def test_other_forms_are_refused(text):
    with pytest.raises(UserError, match="'old classes 0.3'"):
        parse_subset(text)


def test_what_leaves_nothing_or_says_two_things_is_refused():
    with pytest.raises(UserError, match="leaves no old class"):
        digits("old classes 0.01")
    with pytest.raises(UserError, match="exclude each other"):
        digits("old classes 0.5", classes="first 5")
