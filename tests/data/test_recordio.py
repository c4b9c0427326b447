"""RecordIO pairs as InsightFace releases them, written byte for byte as MXNet writes them."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_recordio import MAGIC_BYTES, frame, insightface, pack, png, write

from fct_jax.data.decoding import UnreadableImage
from fct_jax.data.recordio import MAGIC, RecordFile, RecordIOReader, unpack
from fct_jax.errors import UserError


@pytest.mark.parametrize("two_labels", [True, False])
def test_insightface_pair(tmp_path, two_labels):
    reader = RecordIOReader(write(tmp_path, insightface(two_labels=two_labels)))
    assert len(reader) == 6 and reader.class_names == ("0", "1", "2")
    assert reader.labels().tolist() == [0, 0, 0, 1, 2, 2] and reader.labels().dtype == np.int32
    assert reader.ids().tolist() == [1, 2, 3, 4, 5, 6] and reader.ids().dtype == np.int64
    assert reader.image_size(np.arange(6)) is None
    for position in range(6):
        image, label = reader.read(position)
        assert image.shape == (5, 7, 3) and image.dtype == np.uint8
        value = 10 * (position + 1)
        assert image[2, 3].tolist() == [value, 2 * value, 255 - value]
        assert label == reader.labels()[position]


def test_pair_without_header_record(tmp_path):
    """MXNet's im2rec writes only images, from record 0 on, with one label each."""
    labels = [4.0, 0.0, 4.0, 2.0]
    contents = {key: pack(label, png(key), key) for key, label in enumerate(labels)}
    shuffled = {key: contents[key] for key in (2, 0, 3, 1)}
    reader = RecordIOReader(write(tmp_path, shuffled))
    assert reader.ids().tolist() == [0, 1, 2, 3] and reader.labels().tolist() == [4, 0, 4, 2]
    assert reader.class_names == ("0", "1", "2", "3", "4")
    assert reader.read(2)[0][0, 0].tolist() == [2, 4, 253]
    # A record with two labels and an image is an image, not a header.
    write(tmp_path, {0: pack([1.0, 9.0], png(5)), 1: pack([0.0, 9.0], png(6))})
    assert RecordIOReader(tmp_path).labels().tolist() == [1, 0]
    assert RecordIOReader(tmp_path).read(0)[0][0, 0].tolist() == [5, 10, 250]


def test_labels_do_not_rely_on_identity_records(tmp_path):
    contents = insightface((2, 2))
    wanted = [7, 7, 7, 3]
    for key, label in enumerate(wanted, start=1):
        contents[key] = pack(float(label), png(key))
    assert RecordIOReader(write(tmp_path, contents)).labels().tolist() == wanted
    contents[5] = pack([1.0, float("nan")])
    assert RecordIOReader(write(tmp_path, contents)).labels().tolist() == wanted
    contents[5] = pack([1.0, 4.0])  # overlaps the other identity
    assert RecordIOReader(write(tmp_path, contents)).labels().tolist() == wanted
    del contents[5], contents[6]
    assert RecordIOReader(write(tmp_path, contents)).labels().tolist() == wanted


def test_identity_without_images(tmp_path):
    contents = insightface((2, 0, 1))
    assert RecordIOReader(write(tmp_path, contents)).labels().tolist() == [0, 0, 2]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from([MAGIC_BYTES, b"ab", b"abcd", b"\0", b"xyz"]), max_size=9))
def test_content_with_the_magic_number(tmp_path_factory, pieces):
    folder = tmp_path_factory.mktemp("rec")
    contents = {0: b"first", 1: b"".join(pieces), 2: b"last" * 9}
    write(folder, contents)
    file = RecordFile(folder / "train.rec", folder / "train.idx")
    assert {key: file.content(key) for key in (2, 1, 0)} == contents


def test_magic_number_within_the_header(tmp_path):
    """If the id of a record is the magic number, the label is in another part."""
    contents = {
        0: pack(6.0, png(1), MAGIC),
        1: pack([5.0, 1.0], png(2), MAGIC << 32 | MAGIC),
        2: pack(4.0, MAGIC_BYTES * 3),
        3: pack(3.0),  # the file ends before a second label could follow
    }
    assert frame(contents[1]).count(MAGIC_BYTES) >= 3
    file = RecordFile(write(tmp_path, contents) / "train.rec", tmp_path / "train.idx")
    assert file.first_labels(np.array([3, 2, 1, 0])).tolist() == [3, 4, 5, 6]
    assert file.record(1).labels == (5.0, 1.0) and file.record(1).id == MAGIC << 32 | MAGIC
    assert RecordIOReader(tmp_path).read(1)[0][0, 0].tolist() == [2, 4, 253]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.binary(max_size=9)), min_size=1))
def test_first_labels(tmp_path_factory, records):
    folder = tmp_path_factory.mktemp("rec")
    contents = {
        3 * key: pack([float(label)] * count if count else float(label), image)
        for key, (label, count, image) in enumerate(records)
    }
    write(folder, contents)
    file = RecordFile(folder / "train.rec", folder / "train.idx")
    wanted = [float(label) for label, _, _ in records]
    assert file.first_labels(file.keys).tolist() == wanted
    assert [unpack(contents[int(key)]).labels[0] for key in file.keys] == wanted


def test_threads_and_copies(tmp_path):
    contents = {key: pack(float(key % 3), bytes([key]) * 50) for key in range(40)}
    file = RecordFile(write(tmp_path, contents) / "train.rec", tmp_path / "train.idx")
    state = pickle.dumps(file)
    assert len(state) < 3000  # the state does not contain the file
    for one in (file, pickle.loads(state)):
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(one.content, list(range(40)) * 5)
            assert list(found) == list(contents.values()) * 5
    reader = pickle.loads(pickle.dumps(RecordIOReader(write(tmp_path / "b", insightface()))))
    assert reader.read(5)[1] == 2


def fails(message, call):
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_truncated_files(tmp_path):
    write(tmp_path, insightface())
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    whole, index = rec.read_bytes(), idx.read_bytes()
    for length in range(1, len(whole)):
        if length % 37 == 1 or length > len(whole) - 9:
            rec.write_bytes(whole[:length])
            fails(r"train\.rec is cut off: record 9 ", lambda: RecordIOReader(tmp_path))
    rec.write_bytes(b"")
    fails(r"train\.rec is empty", lambda: RecordIOReader(tmp_path))
    rec.write_bytes(whole)
    images = index.index(b"7\t")  # the records after it only help to find labels fast
    for length in range(images - 1):
        idx.write_bytes(index[:length])
        fails(r"train\.(idx|rec)", lambda: RecordIOReader(tmp_path))
    idx.write_bytes(index[:images])
    assert RecordIOReader(tmp_path).labels().tolist() == [0, 0, 0, 1, 2, 2]
    idx.unlink()
    fails(r"no file .*train\.idx", lambda: RecordIOReader(tmp_path))
    rec.unlink()
    fails(r"no file .*train\.rec", lambda: RecordIOReader(tmp_path))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("0\t0\n1\t40\n", "record 1 .*damaged, or the index is of another file"),
        ("0\t0\n0\t44\n", "key 0 comes twice"),
        ("0\t0\n1\n", "not an index of 'key offset' lines"),
        ("0\t0\none\t44\n", "not an index of 'key offset' lines.*one"),
        ("0\t0.5\n", "not an index of 'key offset' lines"),
        ("0\t-4\n", "both 0 or more"),
        ("0 0 0\n", "must hold 'key offset'"),
        ("\n", "not an index"),
        ("0\t99999\n", "cut off"),
    ],
)
def test_bad_index(tmp_path, index, message):
    write(tmp_path, {0: pack(1.0, b"abcd"), 1: pack(1.0, b"abcd")})
    (tmp_path / "train.idx").write_text(index)
    fails(message, lambda: RecordIOReader(tmp_path))


def test_damaged_records(tmp_path):
    contents = insightface()
    del contents[4]
    fails(
        "speaks of 6 images, of which 1 are not", lambda: RecordIOReader(write(tmp_path, contents))
    )
    for label, shown in ((0.5, "0.5"), (-1.0, "-1"), (float("nan"), "nan"), (2.0**31, "2.1")):
        damaged = {**insightface(), 4: pack(label, png(1))}
        fails(
            rf"train\.rec: the label {shown}.* of record 4 is not a class",
            lambda damaged=damaged: RecordIOReader(write(tmp_path, damaged)),
        )
    write(tmp_path, {0: pack(0.0, png(1)), 1: pack(0.0, png(2))})
    rec = bytearray((tmp_path / "train.rec").read_bytes())
    for at, value in ((4, 3 << 5), (8, 200)):  # a part without a beginning; 200 labels
        reader = RecordIOReader(tmp_path)
        broken = rec.copy()
        broken[at + 3 if at == 4 else at] = value
        (tmp_path / "train.rec").write_bytes(broken)
        reader = pickle.loads(pickle.dumps(reader))
        with pytest.raises(UnreadableImage, match=r"record 0 of .*train\.rec.* is damaged"):
            reader.read(0)
        assert reader.read(1)[1] == 0
        (tmp_path / "train.rec").write_bytes(rec)
    write(tmp_path, {0: pack(0.0, png(1)), 1: pack(0.0, b"no image")})
    with pytest.raises(UnreadableImage, match=r"image 1 of .*train\.rec"):
        RecordIOReader(tmp_path).read(1)
    write(tmp_path, {0: b"short", 1: pack(0.0)})
    fails("5 bytes hold no header", lambda: RecordIOReader(tmp_path))
    fails(
        "has no record 8",
        lambda: RecordFile(tmp_path / "train.rec", tmp_path / "train.idx").content(8),
    )
