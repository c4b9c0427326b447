"""Every kind of source: what it holds, in which order, and what it says about mistakes."""

import subprocess
import sys
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest
from patience import LONG
from PIL import Image
from sklearn.datasets import load_digits
from tiny_data import cifar_content, write_cifar_tfds, write_folder

from fct_jax.data import UnreadableImage, open_source, parse_classes
from fct_jax.errors import UserError


def config(name, directory="", **more):
    return ml_collections.ConfigDict({"name": name, "dir": str(directory), **more})


# --- classes ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("first 3", (0, 1, 2)),
        ("first 100", tuple(range(100))),
        ("0-5,10-53", (*range(6), *range(10, 54))),
        (" 7 , 3-4,4 ", (3, 4, 7)),
        ("99", (99,)),
    ],
)
def test_parse_classes(text, expected):
    assert parse_classes(text, 100) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first 101", "nearest right value is 'first 100'"),
        ("first 0", "nearest right value is 'first 1'"),
        ("0-100", "no class 100; ids go from 0 to 99"),
        ("5-3", "empty range"),
        ("-1", "cannot read '-1'"),
        ("1,,2", "cannot read ''"),
        ("first half", "cannot read 'first half'"),
        (50, "must be a string"),
    ],
)
def test_bad_classes(text, message):
    with pytest.raises(UserError, match=message):
        parse_classes(text, 100)


# --- digits ---


def test_digits():
    train, validation = (open_source(config("digits"), split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (1000, 797)
    assert train.image_size == (8, 8) and train.num_classes == 10
    assert train.class_names == tuple("0123456789")
    # Every image is in exactly one of the two.
    np.testing.assert_array_equal(np.sort(np.r_[train.ids, validation.ids]), np.arange(1797))
    digits = load_digits()
    for source in (train, validation):
        assert source.ids.dtype == np.int64 and source.labels.dtype == np.int32
        np.testing.assert_array_equal(source.labels, digits.target[source.ids])
        share = np.bincount(source.labels) / np.bincount(digits.target)
        assert np.ptp(share) < 0.02  # stratified
        for i in (0, 5, len(source) - 1):
            example = source[i]
            assert example["label"] == source.labels[i]
            image = example["image"]
            assert image.shape == (8, 8, 3) and image.dtype == np.uint8
            for channel in range(3):
                wanted = digits.images[source.ids[i]] / 16 * 255
                np.testing.assert_allclose(image[..., channel], wanted, atol=0.51)
    assert max(train[i]["image"].max() for i in range(50)) == 255
    # The split is part of the published numbers: it never changes.
    assert validation.ids[:8].tolist() == DIGITS_VALIDATION_START


DIGITS_VALIDATION_START = [0, 1, 4, 5, 6, 9, 10, 11]


def test_subset_keeps_labels():
    whole = open_source(config("digits"), "train")
    part = open_source(config("digits", classes="2,5-6"), "train")
    assert set(part.labels) == {2, 5, 6} and part.num_classes == 10
    assert len(part) == np.isin(whole.labels, [2, 5, 6]).sum()
    np.testing.assert_array_equal(part.ids, whole.ids[np.isin(whole.labels, [2, 5, 6])])
    assert part[7]["label"] == part.labels[7]
    at = whole.ids.tolist().index(part.ids[7])
    np.testing.assert_array_equal(part[7]["image"], whole[at]["image"])
    for outside in (-1, len(part)):
        with pytest.raises(IndexError):
            part[outside]


# --- folders ---


def test_folder(tmp_path):
    write_folder(tmp_path)
    nested = tmp_path / "training" / "10" / "deep" / "er"
    nested.mkdir(parents=True)
    (tmp_path / "training" / "10" / "0.png").rename(nested / "0.png")
    (tmp_path / "training" / "10" / "notes.txt").write_text("no image")
    (tmp_path / "training" / ".hidden").mkdir()
    train = open_source(config("folder", tmp_path), "train")
    assert train.class_names == ("0", "1", "10", "2") and train.num_classes == 4
    assert len(train) == 20 and train.image_size == (20, 24)
    assert train.labels.tolist() == np.repeat(range(4), 5).tolist()
    assert train.ids[10:13].tolist() == ["10/1.png", "10/2.png", "10/3.png"]
    assert train.ids[14] == "10/deep/er/0.png"
    with Image.open(nested / "0.png") as image:
        np.testing.assert_array_equal(train[14]["image"], np.asarray(image))
    assert len(open_source(config("folder", tmp_path), "validation")) == 12
    part = open_source(config("folder", tmp_path, classes="2-3"), "train")
    assert {name.split("/")[0] for name in part.ids} == {"10", "2"} and set(part.labels) == {2, 3}


def test_a_link_to_a_folder_above_is_followed_once(tmp_path):
    """A class folder has links to itself, to its class and to another class's images."""
    write_folder(tmp_path)
    folder = tmp_path / "training" / "10"
    (folder / "again").symlink_to(folder)
    (folder / "deep").mkdir()
    (folder / "deep" / "up").symlink_to(folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "0.png").rename(elsewhere / "0.png")
    (folder / "linked").symlink_to(elsewhere)
    train = open_source(config("folder", tmp_path), "train")
    assert len(train) == 20
    assert [name for name in train.ids if name.startswith("10/linked")] == ["10/linked/0.png"]


def test_folder_of_different_sizes(tmp_path):
    write_folder(tmp_path, size=None)
    source = open_source(config("folder", tmp_path), "train")
    assert source.image_size is None
    assert source[1]["image"].shape == (17, 29, 3)


def test_formats_become_rgb(tmp_path):
    write_folder(tmp_path, ("a",))
    folder = tmp_path / "training" / "a"
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    deep = rng.integers(0, 65536, (6, 9), dtype=np.uint16)
    Image.fromarray(rgba[..., 0]).save(folder / "grey.png")
    Image.fromarray(rgba).save(folder / "alpha.PNG")
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(rgba[..., 0] > 128).save(folder / "one_bit.png")
    palette = Image.fromarray(rgba[..., :3]).quantize(16)
    palette.save(folder / "palette.png", transparency=b"\x00\x80\xff")
    palette.save(folder / "moving.gif", save_all=True, append_images=[palette])
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees"
    flat = Image.new("RGB", (9, 6), (200, 30, 90))
    flat.save(folder / "turned.jpg", exif=exif)
    flat.convert("CMYK").save(folder / "print.tiff")
    flat.save(folder / "web.webp", lossless=True)
    source = open_source(config("folder", tmp_path), "train")
    found = {str(name)[2:]: source[i]["image"] for i, name in enumerate(source.ids)}
    del found["0.png"], found["1.png"], found["2.png"], found["3.png"], found["4.png"]
    assert len(found) == 9
    assert {image.shape for image in found.values()} == {(6, 9, 3)}  # the orientation is ignored
    assert {image.dtype for image in found.values()} == {np.dtype(np.uint8)}
    grey = np.repeat(rgba[..., :1], 3, -1)
    np.testing.assert_array_equal(found["grey.png"], grey)
    np.testing.assert_array_equal(found["alpha.PNG"], rgba[..., :3])
    np.testing.assert_array_equal(found["deep.png"], np.repeat((deep >> 8)[..., None], 3, -1))
    np.testing.assert_array_equal(found["one_bit.png"], np.where(grey > 128, 255, 0))
    np.testing.assert_array_equal(found["palette.png"], np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(found["moving.gif"], found["palette.png"])
    np.testing.assert_array_equal(found["web.webp"], np.asarray(flat))
    np.testing.assert_allclose(found["turned.jpg"], np.asarray(flat), atol=4)
    np.testing.assert_allclose(found["print.tiff"], np.asarray(flat), atol=2)


@pytest.mark.parametrize("damage", [b"", b"no image at all", 60, 500])
def test_unreadable_image_is_named(tmp_path, damage):
    write_folder(tmp_path)
    path = tmp_path / "training" / "1" / "2.png"
    path.write_bytes(damage if isinstance(damage, bytes) else path.read_bytes()[:damage])
    source = open_source(config("folder", tmp_path), "train")
    assert source.image_size == (20, 24)
    with pytest.raises(UnreadableImage, match=r"training/1/2\.png") as caught:
        source[7]
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(UnreadableImage, match=r"training/1/2\.png"):
        source[7]


def test_bad_folders(tmp_path):
    def fails(message, **more):
        with pytest.raises(UserError, match=message) as caught:
            open_source(config("folder", more.pop("directory", tmp_path), **more), "train")
        assert "\n" not in str(caught.value)

    fails("data.dir is empty", directory="")
    fails("no folder .*nowhere", directory=tmp_path / "nowhere")
    fails("no folder .*training; an image folder has")
    (tmp_path / "training").mkdir()
    fails("no class folders in .*training")
    (tmp_path / "training" / "cat").mkdir()
    fails("no folder .*validation")
    (tmp_path / "validation" / "cat").mkdir(parents=True)
    fails("no images in .*training/cat")
    for name in "dog", "emu":
        (tmp_path / "validation" / name).mkdir()
    (tmp_path / "training" / "ant").mkdir()
    fails(r"1 only in training \(ant\); 2 only in validation \(dog, emu\)")


# --- TFDS ---


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    return write_cifar_tfds(tmp_path_factory.mktemp("tfds"), test=90)


def test_cifar100(cifar):
    train = open_source(config("cifar100", cifar), "train")
    validation = open_source(config("cifar100", cifar), "validation")
    assert (len(train), len(validation)) == (200, 90)
    assert train.image_size == (32, 32) and train.num_classes == 100
    assert train.class_names[3] == "class3"
    content = cifar_content(200, 0)
    known = {
        row.reshape(3, 32, 32).transpose(1, 2, 0).tobytes(): label
        for row, label in zip(content["data"], content["fine_labels"], strict=True)
    }
    assert len(known) == 200
    for i in range(200):
        example = train[i]
        assert example["label"] == train.labels[i] == known.pop(example["image"].tobytes())
    np.testing.assert_array_equal(train.ids, np.arange(200))
    part = open_source(config("cifar100", cifar, classes="first 10"), "train")
    np.testing.assert_array_equal(part.labels, train.labels[part.ids])
    np.testing.assert_array_equal(part[5]["image"], train[part.ids[5]]["image"])


def test_labels_are_kept_for_the_next_time(cifar):
    first = open_source(config("cifar100", cifar), "train").labels
    copy = next(cifar.rglob("labels-train.npy"))
    np.testing.assert_array_equal(np.load(copy), first)
    for wrong in (np.zeros(3, np.int32), np.zeros(200, np.float32)):
        np.save(copy, wrong)
        np.testing.assert_array_equal(open_source(config("cifar100", cifar), "train").labels, first)
    np.save(copy, first[::-1])
    np.testing.assert_array_equal(
        open_source(config("cifar100", cifar), "train").labels, first[::-1]
    )
    copy.unlink()


def test_any_tfds_name(cifar):
    source = open_source(config("tfds:cifar100", cifar), "validation")
    assert len(source) == 90


def test_empty_subset(cifar):
    # 90 test images with labels 7i mod 100 leave 10 classes without any.
    missing = sorted(set(range(100)) - set(cifar_content(90, 1)["fine_labels"]))
    with pytest.raises(UserError, match="has no image of these classes"):
        open_source(config("cifar100", cifar, classes=str(missing[0])), "validation")


def test_damaged_record_files(tmp_path):
    write_cifar_tfds(tmp_path, 20, 10)
    file = next(tmp_path.rglob("*train.array_record*"))
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"record 0 of cifar100 train .* cannot be read"):
        open_source(config("cifar100", tmp_path), "train")
    file.unlink()
    with pytest.raises(UserError, match=r"train\.array_record.* is missing"):
        open_source(config("cifar100", tmp_path), "train")
    file.write_bytes(whole)
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    file.rename(str(file).replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="not in the ArrayRecord format"):
        open_source(config("cifar100", tmp_path), "train")


def test_tensorflow_is_not_imported(cifar):
    code = f"""
import sys
from types import SimpleNamespace
from fct_jax.data import Preprocessing, batches, load_all, open_source
data = SimpleNamespace(name="cifar100", dir={str(cifar)!r}, classes="first 50")
source = open_source(data, "train")
source.labels, source[0], load_all(source, Preprocessing(size=8))
next(batches(source, Preprocessing(size=8), batch_size=4, train=True, seed=0))
assert "tensorflow" not in sys.modules
print("ran")
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )
    assert (result.stdout.strip(), result.stderr.strip()) == ("ran", "")


# --- mistakes common to all ---


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "digit"},
            "unknown data set 'digit'; did you mean 'digits'.*: cifar100, dig",
        ),
        ({"name": "tfds:"}, "unknown data set"),
        ({"name": "tfds:no_such_set_at_all"}, "TFDS has no data set 'no_such_set_at_all'"),
        (
            {"name": "cifar100", "dir": "/nowhere/data"},
            "run: python tools/prepare_dataset.py cifar100 --data_dir /nowhere/data",
        ),
        ({"name": "imagenet2012", "dir": "/nowhere"}, "prepare_dataset.py imagenet2012"),
        ({"name": "digits", "classes": "first 11"}, "has 10 classes"),
        ({"name": "digits", "on_error": "ignore"}, "unknown data.on_error 'ignore'.*raise, skip"),
    ],
)
def test_mistakes(section, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(SimpleNamespace(**section), "train")
    assert "\n" not in str(caught.value)


def test_unknown_split():
    with pytest.raises(UserError, match="unknown split 'valid'; did you mean 'validation'"):
        open_source(config("digits"), "valid")
