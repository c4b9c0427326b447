"""tools/prepare_dataset.py: archives in their real layout -> files that open_source reads."""

import io
import os
import pickle
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from patience import LONG
from PIL import Image
from tiny_data import add, cifar_content, cifar_split, write_cifar_archive

from fct_jax.data import open_source
from fct_jax.data.prepare.cifar import read_archive
from fct_jax.errors import UserError

TOOL = Path(__file__).parents[2] / "tools" / "prepare_dataset.py"
tool = SimpleNamespace(**runpy.run_path(str(TOOL)))


@pytest.fixture
def archive(tmp_path):
    return write_cifar_archive(tmp_path / "cifar-100-python.tar.gz")


def check(source, split):
    """Check that the source holds ``split``, in any order."""
    found = sorted((source[i]["image"].tobytes(), source[i]["label"]) for i in range(len(source)))
    wanted = zip(split.images, split.labels, strict=True)
    assert found == sorted((image.tobytes(), int(label)) for image, label in wanted)


def test_archive_to_tfds(tmp_path, archive, capsys):
    arguments = ["cifar100", "--data_dir", str(tmp_path / "data"), "--archive", str(archive)]
    assert tool.main(arguments) == 0
    assert "is ready in" in capsys.readouterr().out
    data = SimpleNamespace(name="cifar100", dir=str(tmp_path / "data"))
    train, validation = open_source(data, "train"), open_source(data, "validation")
    check(train, cifar_split(200, 0))
    check(validation, cifar_split(100, 1))
    assert train.class_names[42] == "class42" and train.image_size == (32, 32)
    # TFDS itself recognises the result as its own data set.
    builder = tfds.builder("cifar100", data_dir=tmp_path / "data")
    assert builder.info.splits["train"].num_examples == 200
    assert builder.info.features["coarse_label"].names[7] == "group7"
    left = sorted(path.name for path in (tmp_path / "data").rglob("*"))
    assert not [name for name in left if "incomplete" in name or "download" in name]

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert tool.main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}


def test_archive_to_folder(tmp_path, archive, capsys):
    root = tmp_path / "new" / "cifar"
    arguments = ["cifar100", "--data_dir", str(root), "--archive", str(archive)]
    assert tool.main([*arguments, "--format", "folder"]) == 0
    data = SimpleNamespace(name="folder", dir=str(root), classes="0-5,10-53")
    train = open_source(data, "train")
    # Names are sorted as text (0, 1, 10, 11, …): position 10 is CIFAR's class 18.
    assert train.class_names[:4] == ("0", "1", "10", "11") and train.num_classes == 100
    split = cifar_split(200, 0)
    for i in range(len(train)):
        name, file = str(train.ids[i]).split("/")
        index = int(Path(file).stem)
        assert int(name) == split.labels[index]
        np.testing.assert_array_equal(train[i]["image"], split.images[index])
    assert [path.name for path in root.parent.iterdir()] == ["cifar"]
    assert tool.main([*arguments, "--format", "folder"]) == 1
    assert "not empty" in capsys.readouterr().err


def test_python_3_archive(tmp_path):
    content = pickle.dumps(cifar_content(5, 3))
    path = write_cifar_archive(tmp_path / "a.tar.gz", test=content)
    np.testing.assert_array_equal(
        read_archive(path).splits["test"].images, cifar_split(5, 3).images
    )


def broken(**changes):
    return pickle.dumps(cifar_content(4, 0) | changes, 2)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train": None}, "has no cifar-100-python/train"),
        ({"train": broken(fine_labels=[1, 2, 3])}, "'fine_labels' with 4 numbers below 100"),
        ({"train": broken(fine_labels=[1, 2, 3, 100])}, "'fine_labels' with 4"),
        ({"test": broken(coarse_labels=[1, 2, 3, -1])}, "'coarse_labels' with 4 numbers below 20"),
        ({"test": broken(data=np.zeros((4, 7), np.uint8))}, "'data' of N x 3072"),
        ({"meta": pickle.dumps({"fine_label_names": ["a"]})}, "'fine_label_names' with 100"),
        ({"meta": pickle.dumps([1])}, "holds a list"),
        ({"train": pickle.dumps(Evil())}, "pickle refused"),
        ({"train": b"\x80\x02}"}, "damaged pickle"),
    ],
)
@pytest.mark.parametrize("form", ["tfds", "folder"])
def test_bad_archive_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, replaced, message, form
):
    monkeypatch.chdir(tmp_path)
    path = write_cifar_archive(tmp_path / "bad.tar.gz", (10, 10), **replaced)
    arguments = ["cifar100", "--data_dir", "out/data", "--archive", str(path), "--format", form]
    assert tool.main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: ") and "\n" not in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != path]
    assert not (tmp_path / "ran").exists()


def test_truncated_archive(tmp_path, archive):
    archive.write_bytes(archive.read_bytes()[:20000])
    with pytest.raises(UserError, match="damaged"):
        read_archive(archive)
    with pytest.raises(UserError, match="no file"):
        read_archive(tmp_path / "none.tar.gz")


def test_download_through_tfds(tmp_path, monkeypatch):
    """The binary form is downloaded, with a stand-in for the network."""
    folder = tmp_path / "extracted" / "cifar-100-binary"
    folder.mkdir(parents=True)
    for name, count, seed in (("train", 30, 0), ("test", 10, 1)):
        content = cifar_content(count, seed)
        labels = np.stack([content["coarse_labels"], content["fine_labels"]], 1).astype(np.uint8)
        (folder / f"{name}.bin").write_bytes(np.hstack([labels, content["data"]]).tobytes())
    (folder / "fine_label_names.txt").write_text("".join(f"class{i}\n" for i in range(100)))
    (folder / "coarse_label_names.txt").write_text("".join(f"group{i}\n" for i in range(20)))
    asked = []

    def download(self, url):
        asked.append(url)
        return folder.parent

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", download)
    assert tool.main(["cifar100", "--data_dir", str(tmp_path / "data")]) == 0
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"]
    data = SimpleNamespace(name="cifar100", dir=str(tmp_path / "data"))
    check(open_source(data, "train"), cifar_split(30, 0))
    check(open_source(data, "validation"), cifar_split(10, 1))


def jpeg(seed, mode="RGB"):
    image = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "JPEG")
    return file.getvalue()


def test_imagenet(tmp_path, capsys):
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    arguments = ["imagenet2012", "--data_dir", str(tmp_path), "--manual_dir", str(downloads)]
    assert tool.main(arguments) == 1
    assert "ILSVRC2012_img_train.tar" in capsys.readouterr().err
    with tarfile.open(downloads / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid, names in (("n01440764", ["a", "b"]), ("n01739381", ["n01739381_1309"])):
            file = io.BytesIO()
            with tarfile.open(fileobj=file, mode="w") as inner:
                for i, name in enumerate(names):
                    add(inner, f"{name}.JPEG", jpeg(i, "CMYK" if "_" in name else "RGB"))
            add(outer, f"{wnid}.tar", file.getvalue())
    with tarfile.open(downloads / "ILSVRC2012_img_val.tar", "w") as validation:
        for i in (2, 1):  # labels belong to sorted names
            add(validation, f"ILSVRC2012_val_0000000{i}.JPEG", jpeg(i))
    assert tool.main(arguments) == 0
    data = SimpleNamespace(name="imagenet2012", dir=str(tmp_path))
    train, validation = open_source(data, "train"), open_source(data, "validation")
    assert train.num_classes == 1000 and train.image_size is None
    assert sorted(train.labels) == [0, 0, train.class_names.index("n01739381")]
    assert train[0]["image"].shape == (12, 16, 3)
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    for i in range(2):
        number = 1 + [validation[i]["image"].tobytes() == pixels(j) for j in (1, 2)].index(True)
        assert validation.class_names[validation.labels[i]] == labels[number - 1]


def pixels(seed):
    return np.asarray(Image.open(io.BytesIO(jpeg(seed)))).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "knows no data set 'nope'"),
        (["imagenet2012", "--archive", "x"], "--archive is for cifar100"),
        (["cifar100", "--format", "folder"], "needs --archive"),
        (["cifar100", "--archive", "missing.tar.gz"], "no file missing.tar.gz"),
    ],
)
def test_mistakes(tmp_path, capsys, arguments, message):
    assert tool.main([*arguments, "--data_dir", str(tmp_path / "data")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_command_line(tmp_path):
    run = [sys.executable, str(TOOL)]
    help_text = subprocess.run(
        [*run, "--help"], capture_output=True, text=True, check=True, timeout=LONG
    ).stdout
    assert "--archive cifar-100-python.tar.gz" in help_text and "--data_dir" in help_text
    failed = subprocess.run(
        [*run, "cifar100", "--data_dir", str(tmp_path), "--archive", "none"],
        capture_output=True,
        text=True,
        check=False,
        timeout=LONG,
    )
    assert failed.returncode == 1 and failed.stderr.strip() == "error: no file none"
