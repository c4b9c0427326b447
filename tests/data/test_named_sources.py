"""Landmark, re-identification and face data by name: open_source, its splits, and batches."""

import io
import pickle
import struct

import ml_collections
import numpy as np
import pytest
from PIL import Image
from tiny_recordio import insightface
from tiny_recordio import write as write_recordio

from fct_jax import config as configs
from fct_jax.data import Preprocessing, batches, load_all, open_source
from fct_jax.data.ijb import read_media, rows_of
from fct_jax.data.landmarks import gldv2_path
from fct_jax.data.readers import SPLITS, gldv2_truth, revisited_truth, splits_of
from fct_jax.errors import UserError


def config(name, directory="", **more):
    return ml_collections.ConfigDict({"name": name, "dir": str(directory), **more})


def picture(path, value, size=(12, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255 - value)).save(path)
    return path


def fails(message, data, split="train"):
    with pytest.raises(UserError, match=message) as caught:
        open_source(data, split)
    assert "\n" not in str(caught.value)


def red(source):
    """Return the numbers that the images' red values encode, read through the pipeline."""
    loaded = load_all(source, Preprocessing(size=8))
    assert loaded["image"].shape == (len(source), 8, 8, 3)
    assert np.array_equal(loaded["label"], source.labels)
    assert np.array_equal(loaded["index"], np.arange(len(source)))
    return np.rint(loaded["image"][:, 4, 4, 0] / 10).astype(int).tolist()


@pytest.fixture
def lists(tmp_path):
    names = ["a/1.png", "b c/2.png", "3.png", "4.png"]
    for number, name in enumerate(names, start=1):
        picture(tmp_path / "images" / name, 10 * number)
    (tmp_path / "train.txt").write_text("a/1.png 5\nb c/2.png 0\n3.png 0\n")
    (tmp_path / "validation.txt").write_text("4.png 2\n")
    return config(
        "list",
        tmp_path / "images",
        list=str(tmp_path / "train.txt"),
        validation_list=str(tmp_path / "validation.txt"),
    )


def test_list(lists):
    train, validation = (open_source(lists, split) for split in ("train", "validation"))
    assert train.labels.tolist() == [5, 0, 0] and train.num_classes == 6
    assert train.ids.tolist() == ["a/1.png", "b c/2.png", "3.png"] and train.image_size is None
    assert red(train) == [1, 2, 3]
    assert validation.labels.tolist() == [2] and validation.num_classes == 6
    assert red(validation) == [4]
    lists.classes = "0-2"
    assert open_source(lists, "train").ids.tolist() == ["b c/2.png", "3.png"]


def test_list_of_an_old_model(lists):
    """The old model's list has fewer classes than the validation images."""
    lists.list, lists.validation_list = lists.validation_list, lists.list
    assert open_source(lists, "train").num_classes == 3
    assert open_source(lists, "validation").num_classes == 6
    lists.list = ""
    assert open_source(lists, "validation").num_classes == 6
    fails("data.list is empty: it must name the file of train images", lists)
    lists.validation_list = ""
    fails("data.validation_list is empty", lists, "validation")


def test_bad_lists(lists, tmp_path):
    fails("has no split 'query'; it has train, validation", lists, "query")
    (tmp_path / "train.txt").write_text("a/1.png 5\n3.png\n")
    fails(r"train\.txt, line 2", lists)
    (tmp_path / "train.txt").write_text("a/1.png 5\n8.png 1\n9.png 1\n")
    fails(r"2 of 3 images are missing under .*: 8\.png, 9\.png", lists)
    lists.dir = ""
    fails("data.dir is empty: it must name the folder of list", lists)
    lists.dir = "/nowhere"
    fails(r"no folder /nowhere \(data.dir\)", lists)


def test_faces(tmp_path):
    for number, name in enumerate(["m.01/0.jpg", "m.01/1.jpg", "m.02/deep/0.png"], start=1):
        picture(tmp_path / name, 10 * number)
    (tmp_path / "readme.txt").write_text("aligned to 112×112")
    source = open_source(config("faces", tmp_path), "train")
    assert source.class_names == ("m.01", "m.02") and source.labels.tolist() == [0, 0, 1]
    assert source.ids.tolist() == ["m.01/0.jpg", "m.01/1.jpg", "m.02/deep/0.png"]
    assert source.image_size is None and red(source) == [1, 2, 3]
    fails("has no split 'validation'; it has train", config("faces", tmp_path), "validation")
    (tmp_path / "m.03").mkdir()
    fails(r"no images in .*m\.03", config("faces", tmp_path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "inner").mkdir()
    fails("no class folders in", config("faces", tmp_path / "empty" / "inner"))
    fails("no folder", config("faces", tmp_path / "nowhere"))


def test_ms1m(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_recordio(tmp_path / "ms1m", insightface())
    source = open_source(config("ms1m", "~/ms1m"), "train")
    assert source.labels.tolist() == [0, 0, 0, 1, 2, 2] and source.num_classes == 3
    assert source.ids.tolist() == [1, 2, 3, 4, 5, 6] and red(source) == [1, 2, 3, 4, 5, 6]
    part = open_source(config("ms1m", tmp_path / "ms1m", classes="0,2"), "train")
    assert part.ids.tolist() == [1, 2, 3, 5, 6] and red(part) == [1, 2, 3, 5, 6]
    fails("has no split 'gallery'; it has train", config("ms1m", tmp_path), "gallery")
    fails(r"no file .*train\.rec", config("ms1m", tmp_path))


@pytest.mark.slow
def test_ms1m_in_worker_processes(tmp_path):
    source = open_source(config("ms1m", write_recordio(tmp_path / "b", insightface())), "train")
    stream = batches(
        source, Preprocessing(size=8), batch_size=3, train=True, seed=0, epochs=1, workers=2
    )
    found = {}
    for batch in stream:
        assert batch["image"].shape == (3, 8, 8, 3)
        for index, image, label in zip(
            *(batch[k] for k in ("index", "image", "label")), strict=True
        ):
            found[int(index)] = (round(int(image[4, 4, 0]) / 10), int(label))
    assert found == {i: (i + 1, label) for i, label in enumerate(source.labels.tolist())}


def test_damaged_image_in_a_recordio_pair(tmp_path):
    contents = insightface()
    contents[2] = struct.pack("<IfQQ", 0, 0.0, 2, 0) + b"no image"
    write_recordio(tmp_path, contents)
    data = config("ms1m", tmp_path)
    with pytest.raises(UserError, match=r"image 2 of .*train\.rec"):
        load_all(open_source(data, "train"), Preprocessing(size=8))
    data.on_error = "skip"
    loaded = load_all(open_source(data, "train"), Preprocessing(size=8))
    assert loaded["index"].tolist() == [0, 2, 3, 4, 5]


def test_market1501(tmp_path):
    names = {
        "bounding_box_train": ["0007_c1s6_028546_04.jpg", "0002_c1s1_000451_03.jpg"],
        "query": ["0003_c1s6_015971_00.jpg"],
        "bounding_box_test": [
            "-1_c1s1_000401_03.jpg",
            "0000_c1s1_000151_01.jpg",
            "0003_c2s6_015971_02.jpg",
        ],
    }
    for folder, files in names.items():
        for number, name in enumerate(files, start=1):
            picture(tmp_path / folder / name, 10 * number, (64, 128))
    data = config("market1501", tmp_path)
    train, query, gallery = (open_source(data, split) for split in ("train", "query", "gallery"))
    assert train.labels.tolist() == [0, 1] and train.class_names == ("0002", "0007")
    assert red(train) == [2, 1]
    assert query.labels.tolist() == [3] and query.ids.tolist() == names["query"]
    assert gallery.labels.tolist() == [0, 3] and red(gallery) == [2, 3]
    fails("has no split 'validation'; it has train, query, gallery", data, "validation")
    data.list = str(tmp_path / "old.txt")
    (tmp_path / "old.txt").write_text("bounding_box_train/0007_c1s6_028546_04.jpg 0 1 6\n")
    assert open_source(data, "train").labels.tolist() == [0]
    assert len(open_source(data, "gallery")) == 2


def revisited(folder, truth_folder, name):
    truth = {
        "imlist": ["hall_1", "hall_2", "gate_1"],
        "qimlist": ["hall_0", "gate_0"],
        "gnd": [
            {"bbx": [2.0, 2.0, 6.0, 5.0], "easy": [0], "hard": [1], "junk": []},
            {"bbx": [0.0, 0.0, 6.0, 5.0], "easy": [], "hard": [2], "junk": [0]},
        ],
    }
    truth_folder.mkdir(parents=True, exist_ok=True)
    (truth_folder / f"gnd_{name}.pkl").write_bytes(pickle.dumps(truth, protocol=2))
    for number, image in enumerate(truth["qimlist"] + truth["imlist"], start=1):
        picture(folder / "jpg" / f"{image}.jpg", 10 * number)


@pytest.mark.parametrize("layout", ["own folder", "pickles above", "plain"])
@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
def test_revisited(tmp_path, layout, name):
    """The benchmark's own layout, that of the published code, and a single folder are read."""
    images = tmp_path if layout == "plain" else tmp_path / name
    revisited(images, tmp_path / name if layout == "own folder" else tmp_path, name)
    data = config(name, tmp_path)
    query, gallery = (open_source(data, split) for split in ("query", "gallery"))
    assert query.ids.tolist() == ["hall_0.jpg", "gate_0.jpg"] and red(query) == [1, 2]
    assert gallery.ids.tolist() == ["hall_1.jpg", "hall_2.jpg", "gate_1.jpg"]
    assert red(gallery) == [3, 4, 5] and set(gallery.labels) == {-1}
    assert query[0]["image"].shape == (8, 12, 3)
    data.query_crop = True
    assert open_source(data, "query")[0]["image"].shape == (3, 4, 3)
    assert open_source(data, "gallery")[0]["image"].shape == (8, 12, 3)
    # Their ground truth has the same order.
    truth = revisited_truth(tmp_path, name)
    assert [f"{image}.jpg" for image in truth.qimlist] == query.ids.tolist()
    assert [f"{image}.jpg" for image in truth.imlist] == gallery.ids.tolist()
    fails("has no split 'train'; it has query, gallery", data)
    (images / "jpg" / "hall_2.jpg").unlink()
    fails(r"1 of 3 images are missing .*hall_2\.jpg", data, "gallery")


def test_revisited_without_files(tmp_path):
    fails(r"cannot read ground truth .*gnd_roxford5k\.pkl", config("roxford5k", tmp_path), "query")


def test_gldv2(tmp_path):
    ids = {"test": ["aa1", "bb2", "cc3"], "index": ["0f1", "1e2"], "train": ["77a"]}
    number = 0
    for folder, names in ids.items():
        for name in names:
            number += 1
            picture(tmp_path / folder / gldv2_path(name), 10 * number)
    (tmp_path / "retrieval_solution_v2.1.csv").write_text(
        "id,images,Usage\naa1,1e2 0f1,Private\nbb2,0f1,Public\ncc3,None,Ignored\n"
    )
    (tmp_path / "train.txt").write_text(f"train/{gldv2_path('77a')} 3\n")
    data = config("gldv2", tmp_path, list=str(tmp_path / "train.txt"))
    train, query, gallery = (open_source(data, split) for split in ("train", "query", "gallery"))
    assert train.labels.tolist() == [3] and train.num_classes == 4 and red(train) == [6]
    assert query.ids.tolist() == ["a/a/1/aa1.jpg"] and red(query) == [1]
    assert gallery.ids.tolist() == ["0/f/1/0f1.jpg", "1/e/2/1e2.jpg"] and red(gallery) == [4, 5]
    truth = gldv2_truth(tmp_path)
    assert truth.gallery == ["0f1", "1e2"] and truth.positives[0].tolist() == [1, 0]
    assert gldv2_truth(tmp_path, "Public").queries == ["bb2"]
    (tmp_path / "index.csv").write_text("id\n1e2\n0f1\n")
    assert red(open_source(data, "gallery")) == [5, 4]
    assert gldv2_truth(tmp_path).positives[0].tolist() == [0, 1]
    fails("data.validation_list is empty", data, "validation")
    data.validation_list = data.list
    assert len(open_source(data, "validation")) == 1


def test_ijb(tmp_path):
    for number in (1, 2, 3):
        picture(tmp_path / "aligned" / f"{number}.jpg", 10 * number)
    file = tmp_path / "ijbc_face_tid_mid.txt"
    file.write_text("1.jpg 10 1\n2.jpg 10 1\n3.jpg 20 2\n1.jpg 20 3\n")
    data = config("ijb", tmp_path / "aligned", list=str(file))
    source = open_source(data, "gallery")
    assert source.ids.tolist() == ["1.jpg", "2.jpg", "3.jpg"] and red(source) == [1, 2, 3]
    assert rows_of(read_media(file), source.ids).tolist() == [0, 1, 2, 0]
    fails("has no split 'train'; it has gallery", data)
    data.list = ""
    fails("data.list is empty", data, "gallery")


def test_splits():
    assert SPLITS == ("train", "validation", "query", "gallery")
    assert splits_of("digits") == splits_of("tfds:any") == ("train", "validation")
    assert splits_of("market1501") == ("train", "query", "gallery")
    with pytest.raises(UserError, match="unknown data set 'market'; did you mean 'market1501'"):
        splits_of("market")
    fails("unknown split 'querry'; did you mean 'query'", config("market1501", "/x"), "querry")
    fails("digits has no split 'gallery'", config("digits"), "gallery")


def test_config_has_the_keys():
    data = configs.data()
    assert (data.list, data.validation_list, data.query_crop) == ("", "", False)
    assert len(open_source(data, "train")) == 1000


def test_bytes_of_the_images_are_decoded_as_they_are(tmp_path):
    """A PNG inside the record file comes out pixel by pixel."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    write_recordio(tmp_path, {0: struct.pack("<IfQQ", 0, 1.0, 0, 0) + file.getvalue()})
    np.testing.assert_array_equal(open_source(config("ms1m", tmp_path), "train")[0]["image"], noise)
