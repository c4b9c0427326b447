"""Parts of which one finishes at the worst moment of another; steps are called in that order."""

import contextlib

import pytest
import tiny_galleries as tiny
from kill_parts import translate

from fct_jax.upgrade.galleries.base import open_gallery
from fct_jax.upgrade.parts.numbers import Part
from fct_jax.upgrade.parts.places import Folder
from fct_jax.upgrade.parts.publishing import Publishing
from fct_jax.upgrade.parts.running import Running


@pytest.fixture
def few(tmp_path):
    """Return the path of a gallery of a few pieces."""
    ids, old, _ = tiny.vectors(60)
    return tiny.write_gallery("set", tmp_path / "few", ids, old)


def test_a_piece_that_is_made_again_while_it_is_joined_leaves_no_file(tmp_path, few, monkeypatch):
    """A slow part is started twice; the other process has published its piece and finishes."""
    up, make = tmp_path / "up", Publishing.make
    translate(few, up, "1/2")

    def slow(publishing, piece):
        monkeypatch.setattr(Publishing, "make", make)
        monkeypatch.setattr(Folder, "remove", lambda place: None)  # is to come
        translate(few, up, "2/2")
        return make(publishing, piece)

    monkeypatch.setattr(Publishing, "make", slow)
    Running.resumed(up).run(Part(2, 2))
    assert not list((up / "parts").glob("piece-*[0-9].npy"))
    assert len(open_gallery(up / "gallery")) == 60


def test_another_part_finishes_after_the_layout_was_seen(tmp_path, few, monkeypatch):
    """The layout is not published anew, without what it asked for."""
    up, turn = tmp_path / "up", Running._turn
    translate(few, up, "1/2")

    @contextlib.contextmanager
    def late(running):
        with turn(running) as first:
            assert not first
            monkeypatch.setattr(Running, "_turn", turn)
            translate(few, up, "2/2")
            yield first

    monkeypatch.setattr(Running, "_turn", late)
    assert len(translate(few, up, "2/2")) == 60
    assert not (up / "parts").exists()
