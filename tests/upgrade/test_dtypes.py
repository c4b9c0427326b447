"""The type of the new gallery's vectors is a choice."""

import numpy as np
import pytest
import tiny_galleries as tiny

from fct_jax.errors import UserError
from fct_jax.upgrade.migration.upgrade import Upgrade

COUNT = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.made_galleries(tmp_path_factory.mktemp("galleries"), COUNT)


@pytest.mark.parametrize("form", ["set", "parquet"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_vectors_are_stored_in_the_chosen_type(made, tmp_path, form, dtype):
    paths, new_set, _, old, new = made
    upgrade = Upgrade(tmp_path / "up")
    gallery = upgrade.apply(
        tiny.plain_map(), paths[form], dtype=dtype, unchecked=True, batch_size=64
    )
    assert gallery.dtype == dtype
    expected = (old @ tiny.weight()).astype(dtype)
    np.testing.assert_allclose(gallery.read(0, COUNT), expected, rtol=2e-3, atol=2e-3)
    # The choice is remembered, new vectors have the same type, and a rollback gives equal bytes.
    before = tiny.contents(tmp_path / "up" / "gallery")
    gallery = upgrade.apply(reembed=new_set)
    assert gallery.dtype == dtype and gallery.versions.all()
    np.testing.assert_array_equal(gallery.read(0, COUNT), new.astype(dtype))
    upgrade.rollback(to=0)
    assert tiny.contents(tmp_path / "up" / "gallery") == before
    other = "float32" if dtype == "float16" else "float16"
    with pytest.raises(UserError, match=f"dtype: {dtype} there, {other} now"):
        upgrade.apply(dtype=other)


def test_types_that_cannot_be(made, tmp_path):
    paths = made[0]
    with pytest.raises(UserError, match="dtype=float16: a Faiss file holds float32, int8 or"):
        Upgrade(tmp_path / "a").apply(tiny.plain_map(), paths["faiss"], dtype="float16")
    with pytest.raises(UserError, match="unknown dtype 'half'"):
        Upgrade(tmp_path / "b").apply(tiny.plain_map(), paths["set"], dtype="half")
    mapping = tiny.plain_map(known=False, matrix=1e5 * tiny.weight())
    with pytest.raises(UserError, match="the map gives values too large for float16 for id"):
        Upgrade(tmp_path / "c").apply(mapping, paths["set"], dtype="float16", unchecked=True)
    with pytest.raises(UserError, match="dtype=float16: a store has the type of its own"):
        Upgrade(tmp_path / "d").apply(mapping, "postgresql://host/db?table=x", dtype="float16")


def test_in_place_is_for_stores(made, tmp_path):
    with pytest.raises(UserError, match="in_place is for stores; the new vectors of files make a"):
        Upgrade(tmp_path / "up").apply(tiny.plain_map(), made[0]["set"], in_place=True)
    Upgrade(tmp_path / "up").apply(tiny.plain_map(), made[0]["set"], unchecked=True)
