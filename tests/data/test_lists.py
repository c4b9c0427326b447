"""Image lists: parsing, errors with file and line, missing images, the source."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fct_jax.data.lists import FileReader, LabelledFiles, list_reader, parse_list, read_list
from fct_jax.errors import UserError


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def make(tmp_path, lines):
    rng = np.random.default_rng(0)
    for number, line in enumerate(lines):
        image = tmp_path / "images" / line.rsplit(maxsplit=1)[0]
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (4 + number, 7, 3), np.uint8)).save(image)
    return write(tmp_path / "train.txt", "\n".join(lines) + "\n\n")


def test_labelled_files(tmp_path):
    file = make(tmp_path, ["a/one.png 2", "b c/two words.png 0", "grüße.png 2"])
    reader = LabelledFiles(list_reader(file, tmp_path / "images"))
    assert len(reader) == 3 and reader.name == str(file)
    assert reader.labels().dtype == np.int32
    assert reader.labels().tolist() == [2, 0, 2]
    assert reader.ids().tolist() == ["a/one.png", "b c/two words.png", "grüße.png"]
    assert reader.class_names == ("0", "1", "2")
    assert reader.image_size(np.arange(3)) is None
    image, label = reader.read(1)
    assert image.shape == (5, 7, 3) and image.dtype == np.uint8
    assert label == 0 and isinstance(label, int)
    pixels = np.asarray(Image.open(tmp_path / "images/b c/two words.png"))
    assert np.array_equal(image, pixels)
    assert len(list_reader(file, tmp_path / "images", num_classes=10).class_names) == 10
    with pytest.raises(UserError, match="num_classes must be at least 3, not 2"):
        list_reader(file, tmp_path / "images", num_classes=2)


@pytest.mark.parametrize(
    "line", ["no_label.png", "x.png cat", "x.png -1", "x.png 1.0", "7", "x.png ²", "x 99999999999"]
)
def test_lines_that_do_not_parse(tmp_path, line):
    file = write(tmp_path / "train.txt", f"fine.png 1\n\n{line}\nfine.png 2\n")
    with pytest.raises(UserError, match=r"train\.txt, line 3: ") as error:
        read_list(file)
    assert "\n" not in str(error.value)


def test_unreadable_lists(tmp_path):
    with pytest.raises(UserError, match=r"cannot read image list .*none"):
        read_list(tmp_path / "none.txt")
    with pytest.raises(UserError, match="is empty"):
        read_list(write(tmp_path / "empty.txt", "\n \n"))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00 1")
    with pytest.raises(UserError, match="not UTF-8"):
        read_list(tmp_path / "binary.txt")


def test_missing_images_are_counted(tmp_path):
    lines = ["there.png 0"]
    file = make(tmp_path, lines)
    write(file, "\n".join(lines + [f"gone/{i:02d}.png 0" for i in range(13)]))
    with pytest.raises(UserError, match="13 of 14 images are missing") as error:
        list_reader(file, tmp_path / "images")
    assert "gone/00.png" in str(error.value) and "gone/09.png, …" in str(error.value)
    assert "gone/10.png" not in str(error.value)
    with pytest.raises(UserError, match="elsewhere does not exist"):
        list_reader(file, tmp_path / "elsewhere")


def test_unreadable_image_is_named(tmp_path):
    file = make(tmp_path, ["one.png 0", "two.png 0"])
    (tmp_path / "images/two.png").write_bytes(b"nothing")
    reader = list_reader(file, tmp_path / "images")
    assert reader.read(0).shape == (4, 7, 3)
    with pytest.raises(UserError, match=r"two\.png"):
        reader.read(1)


def test_box_outside_the_image(tmp_path):
    make(tmp_path, ["one.png 0"])
    boxes = [(2, 1, 100, 3)]
    reader = FileReader("boxes", tmp_path / "images", ["one.png"], [0], (), boxes)
    assert reader.read(0).shape == (2, 5, 3)
    reader = FileReader("boxes", tmp_path / "images", ["one.png"], [0], (), [(9, 0, 12, 3)])
    with pytest.raises(UserError, match=r"leaves nothing of image .*one\.png"):
        reader.read(0)


names = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1).filter(
    lambda name: name == name.strip()
)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(names, st.integers(0, 2**31 - 1)), min_size=1, max_size=5))
def test_what_is_written_is_read(entries):
    lines = parse_list([f"{name} {label}" for name, label in entries])
    assert [(line.path, line.label) for line in lines] == entries
    assert [line.text() for line in lines] == [f"{name} {label}" for name, label in entries]


def test_trailing_fields():
    (line,) = parse_list(["bounding box/0002_c1.jpg 2 0 1"], trailing=2)
    assert line == ("bounding box/0002_c1.jpg", 2, ("0", "1"))
    assert line.text(7) == "bounding box/0002_c1.jpg 7 0 1"
    with pytest.raises(UserError, match=r"line 1: .* is not 'path label field field'"):
        parse_list(["a.jpg 2 0"], trailing=2)
