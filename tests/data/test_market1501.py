"""Market-1501 in folders named as the released ones, through to CMC and mAP."""

import re

import numpy as np
import pytest
from PIL import Image

from fct_jax.data.decoding import UnreadableImage
from fct_jax.data.market1501 import Market1501Reader, parse_names
from fct_jax.errors import UserError
from fct_jax.evaluate.protocols.reid import market1501

TRAIN = [
    "0007_c3s3_077419_03.jpg",
    "0002_c1s1_000451_03.jpg",
    "0002_c2s1_000301_01.jpg",
    "0010_c6s4_002427_02.jpg",
    "0007_c1s6_028546_04.jpg",
]
QUERY = ["0003_c1s6_015971_00.jpg", "0001_c1s1_001051_00.jpg", "0003_c4s6_015641_00.jpg"]
GALLERY = [
    "-1_c1s1_000401_03.jpg",
    "0000_c1s1_000151_01.jpg",
    "0000_c5s2_107873_02.jpg",
    "0001_c2s1_001976_01.jpg",
    "0001_c1s1_001051_03.jpg",
    "0003_c4s6_015641_03.jpg",
    "0003_c1s6_015971_02.jpg",
    "1501_c6s4_001877_06.jpg",
    "-1_c6s4_040860_06.jpg",
]


def colour(name: str) -> tuple[int, int, int]:
    identity, camera = re.match(r"(-?\d+)_c(\d)", name).groups()
    return (int(identity) * 17 % 251, int(camera) * 40, 128)


def write(root):
    folders = {"bounding_box_train": TRAIN, "query": QUERY, "bounding_box_test": GALLERY}
    for folder, names in folders.items():
        (root / folder).mkdir(parents=True)
        (root / folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
        for name in names:
            image = Image.new("RGB", (64, 128), colour(name))
            image.save(root / folder / name, "JPEG", quality=95)
    return root


def test_training_split(tmp_path):
    reader = Market1501Reader(write(tmp_path), "train")
    assert reader.ids().tolist() == sorted(TRAIN)
    assert reader.labels().tolist() == [0, 0, 1, 1, 2] and reader.labels().dtype == np.int32
    assert reader.class_names == ("0002", "0007", "0010")
    assert reader.identities.tolist() == [2, 2, 7, 7, 10]
    assert reader.cameras.tolist() == [1, 2, 1, 3, 6] and reader.cameras.dtype == np.int32
    assert len(reader) == 5 and reader.image_size(np.arange(5)) is None
    for position, name in enumerate(sorted(TRAIN)):
        image, label = reader.read(position)
        assert image.shape == (128, 64, 3) and label == reader.labels()[position]
        np.testing.assert_allclose(image[60, 30], colour(name), atol=4)


def test_query_and_gallery_keep_identities(tmp_path):
    query, gallery = (Market1501Reader(write(tmp_path), "query"), None)
    gallery = Market1501Reader(tmp_path, "gallery")
    assert query.ids().tolist() == sorted(QUERY)
    assert query.labels().tolist() == [1, 3, 3] and query.cameras.tolist() == [1, 1, 4]
    # Junk is gone, distractors stay with identity 0.
    assert gallery.labels().tolist() == [0, 0, 1, 1, 3, 3, 1501]
    assert gallery.ids().tolist() == sorted(name for name in GALLERY if name[0] != "-")
    assert gallery.cameras.tolist() == [1, 5, 1, 2, 1, 4, 6]
    assert gallery.class_names[1501] == "1501" and len(gallery.class_names) == 1502
    assert query.class_names[3] == "0003"
    # The ids that an EmbeddingSet keeps are enough to evaluate.
    for reader in (query, gallery):
        identities, cameras = parse_names(reader.ids())
        assert np.array_equal(identities, reader.labels())
        assert np.array_equal(cameras, reader.cameras)


def test_evaluation(tmp_path):
    write(tmp_path)
    query, gallery = (Market1501Reader(tmp_path, split) for split in ("query", "gallery"))
    vectors = [
        np.array([reader.read(i)[0].mean((0, 1))[0] for i in range(len(reader))])
        for reader in (query, gallery)
    ]
    distances = np.abs(vectors[0][:, None] - vectors[1])
    report = market1501(distances, query.labels(), gallery.labels(), query.cameras, gallery.cameras)
    # The red channel tells identities apart, so that the other camera's image is always first.
    assert report["map"] == 1 and report["cmc"][0] == 1


def test_junk_and_distractors_are_not_trained_on(tmp_path):
    write(tmp_path)
    for name in ("-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg"):
        Image.new("RGB", (64, 128)).save(tmp_path / "bounding_box_train" / name)
    reader = Market1501Reader(tmp_path, "train")
    assert reader.class_names == ("0002", "0007", "0010") and len(reader) == 5


def test_training_list(tmp_path):
    write(tmp_path)
    names = [f"bounding_box_train/{name}" for name in TRAIN[:4]]
    file = tmp_path / "old.txt"
    file.write_text(
        "".join(
            f"{n} {label} {n.split('_c')[1][0]} 1\n"
            for n, label in zip(names, [5, 2, 2, 9], strict=True)
        )
    )
    reader = Market1501Reader(tmp_path, "train", file)
    assert reader.ids().tolist() == names
    assert reader.labels().tolist() == [1, 0, 0, 2] and reader.cameras.tolist() == [3, 1, 2, 6]
    assert reader.class_names == ("0002", "0005", "0009")
    np.testing.assert_allclose(reader.read(3)[0][0, 0], colour(TRAIN[3]), atol=4)

    def fails(text, message, split="train"):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            Market1501Reader(tmp_path, split, file)

    fails(f"{names[0]} 5 x 1\n", "camera 'x' of bounding")
    fails(f"{names[0]} 5\n", "line 1: .* is not 'path label field field'")
    fails("nowhere.jpg 5 1 1\n", "1 of 1 images are missing")
    fails(f"{names[0]} 5 1 1\n", "of the training split, not of query", "query")


def test_mistakes(tmp_path):
    def fails(message, split="train", root=tmp_path):
        with pytest.raises(UserError, match=message) as caught:
            Market1501Reader(root, split)
        assert "\n" not in str(caught.value)

    fails("no folder .*/query; Market-1501 has the folders bounding_box_train, query", "query")
    fails("unknown Market-1501 split 'galery'; did you mean 'gallery'", "galery")
    (tmp_path / "query").mkdir()
    (tmp_path / "query" / "readme.txt").write_text("no image")
    fails("no image of a person in .*query", "query")
    Image.new("RGB", (2, 2)).save(tmp_path / "query" / "-1_c1s1_000401_03.jpg")
    fails("no image of a person in .*query", "query")
    Image.new("RGB", (2, 2)).save(tmp_path / "query" / "person.jpg")
    fails("'person.jpg' is no Market-1501 name", "query")


def test_unreadable_image_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "query" / QUERY[1]).write_bytes(b"\xff\xd8\xff")
    reader = Market1501Reader(tmp_path, "query")
    with pytest.raises(UnreadableImage, match=QUERY[1]):
        reader.read(0)


def test_other_names():
    identities, cameras = parse_names(["0001_c2_f0046182.jpg", "a/b/-1_c11s1.jpg"])
    assert identities.tolist() == [1, -1] and cameras.tolist() == [2, 11]
    assert [part.shape for part in parse_names([])] == [(0,), (0,)]
