"""IJB-B and IJB-C text files: parsing, errors with file and line, and the way to the metrics."""

import numpy as np
import pytest
from PIL import Image

from fct_jax.data.ijb import (
    ijb_reader,
    read_media,
    read_pairs,
    read_scores,
    read_subjects,
    rows_of,
)
from fct_jax.errors import UserError
from fct_jax.evaluate.protocols.verification import (
    identification,
    pair_scores,
    pool_templates,
    tar_at_far,
)

MEDIA = "1.jpg 1 69544\n2.jpg 1 69544\n3.jpg 1 105\n4.jpg 11 7\n5.jpg 30 8\n6.jpg 41 9\n"
PAIRS = "1 11 1\n1 30 0\n11 41 0\n30 41 1\n"
GALLERY = (
    "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID,FACE_X,FACE_Y,FACE_WIDTH,FACE_HEIGHT\n"
    "1,800,img/3.png,1,10.5,20,30,40\n"
    '1,800,"frames/9,1.png",2,1,2,3,4\n'
    "30,2145,img/5.png,3,1,2,3,4\n"
)
PROBE = "TEMPLATE_ID,SUBJECT_ID,FILENAME\r\n11,800,a.png\r\n41,2145,b.png\r\n"


def put(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def fails(read, path, text, message):
    put(path, text)
    with pytest.raises(UserError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_media(tmp_path):
    media = read_media(put(tmp_path / "ijbc_face_tid_mid.txt", MEDIA + "\nwith space.jpg 41 10"))
    assert media.images.tolist() == [f"{i}.jpg" for i in range(1, 7)] + ["with space.jpg"]
    assert media.templates.tolist() == [1, 1, 1, 11, 30, 41, 41]
    assert media.media.tolist() == [69544, 69544, 105, 7, 8, 9, 10]
    assert media.templates.dtype == media.media.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg 1 2\n2.jpg 1\n", "line 2: '2.jpg 1' is not 'image template media'"),
        ("1.jpg 1 2\n\n2.jpg 1 x\n", "line 3: "),
        ("1.jpg 1 -2\n", "line 1: "),
        ("1.jpg 1 2.0\n", "line 1: "),
        ("1.jpg 1 99999999999999999999\n", "line 1: "),
        ("", "is empty"),
        ("\n \n", "is empty"),
        (b"\xff\xfe 1 2\n", "cannot read .*utf-8"),
    ],
)
def test_bad_media(tmp_path, text, message):
    fails(read_media, tmp_path / "media.txt", text, message)


def test_pairs(tmp_path):
    pairs = read_pairs(put(tmp_path / "pairs.txt", "\ufeff" + PAIRS))
    assert pairs.first.tolist() == [1, 1, 11, 30] and pairs.second.tolist() == [11, 30, 41, 41]
    assert pairs.same.tolist() == [True, False, False, True] and pairs.same.dtype == bool
    one = read_pairs(put(tmp_path / "pairs.txt", "3 4 0"))
    assert one.first.tolist() == [3] and one.same.tolist() == [False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 1\n3 4\n", "line 2: '3 4' is not 'template template same' with same 0 or 1"),
        ("1 2 1\n\n3 4 2\n", "line 3: '3 4 2' is not"),
        ("1 2\n3 4\n", "line 1: '1 2' is not"),
        ("1 2 0 1\n", "line 1: '1 2 0 1' is not"),
        ("1 2 yes\n", "line 1: '1 2 yes' is not"),
        ("1 2 1\n-3 4 1\n", "line 2: '-3 4 1' is not"),
        ("1 2 1\n3 4.0 1\n", "line 2: '3 4.0 1' is not"),
        ("1 2 1\n# 3 4\n", "line 2"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        (b"1 2 1\n\xff 2 1\n", "cannot read .*utf-8"),
    ],
)
def test_bad_pairs(tmp_path, text, message):
    fails(read_pairs, tmp_path / "pairs.txt", text, message)


def test_scores(tmp_path):
    """A line has a name, five points and a score, or only a name and a score."""
    text = "2.jpg 30.1 51 65 51 48 71 33 92 62 92 0.5\n1.jpg 0.25\n9.jpg 1\n"
    path = put(tmp_path / "ijbc_name_5pts_score.txt", text)
    assert read_scores(path, np.array(["1.jpg", "2.jpg", "1.jpg"])).tolist() == [0.25, 0.5, 0.25]
    with pytest.raises(UserError, match="has no score for 2 images, first 3.jpg"):
        read_scores(path, ["3.jpg", "4.jpg", "1.jpg"])
    for line in ("1.jpg", "1.jpg x", "1.jpg -0.5", "1.jpg inf", "1.jpg nan"):
        message = f"line 2: '{line}' is not 'image … score'"
        fails(lambda path: read_scores(path, []), path, f"2.jpg 1\n{line}\n", message)
    fails(lambda path: read_scores(path, []), path, "", "is empty")


def test_subjects(tmp_path):
    gallery = read_subjects(put(tmp_path / "ijbc_1N_gallery_G1.csv", GALLERY))
    assert gallery.templates.tolist() == [1, 30] and gallery.subjects.tolist() == [800, 2145]
    probe = read_subjects(put(tmp_path / "probe.csv", PROBE))
    assert probe.templates.tolist() == [11, 41] and probe.subjects.tolist() == [800, 2145]
    other = "\ufeffFILENAME,SUBJECT_ID,TEMPLATE_ID\na.png,5,6\n"
    assert read_subjects(put(tmp_path / "other.csv", other)).templates.tolist() == [6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TEMPLATE_ID,PERSON\n1,2\n", "line 1: no column SUBJECT_ID"),
        ("1,2\n3,4\n", "line 1: no column TEMPLATE_ID and SUBJECT_ID"),
        (GALLERY + "1,801,x.png,1,2,3,4,5\n", "line 5: template 1 is of person 801 .* 800 before"),
        (GALLERY + "31\n", "line 5: '31' has no numbers for template, person"),
        (GALLERY + "x,3,4\n", "line 5: 'x,3,4' has no numbers"),
        ("TEMPLATE_ID,SUBJECT_ID\n", "is empty"),
        ("", "is empty"),
    ],
)
def test_bad_subjects(tmp_path, text, message):
    fails(read_subjects, tmp_path / "gallery.csv", text, message)


@pytest.mark.parametrize("read", [read_media, read_pairs, read_subjects])
def test_missing_file(tmp_path, read):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.txt"):
        read(tmp_path / "nowhere.txt")


def test_reader_and_metrics(tmp_path):
    """Images of one of two people are bright, those of the other dark."""
    media_file = put(tmp_path / "media.txt", MEDIA + "4.jpg 41 77\n")  # 4.jpg in two templates
    brightness = {1: 200, 2: 210, 3: 190, 4: 205, 5: 30, 6: 20}
    for number, value in brightness.items():
        Image.new("RGB", (6, 6), (value,) * 3).save(tmp_path / f"{number}.jpg")
    reader = ijb_reader(tmp_path, media_file)
    assert reader.ids().tolist() == [f"{i}.jpg" for i in range(1, 7)]
    assert set(reader.labels()) == {-1} and reader.class_names == ()
    image, label = reader.read(4)
    assert image.shape == (6, 6, 3) and abs(int(image[0, 0, 0]) - 30) < 4 and label == -1

    media = read_media(put(media_file, MEDIA))
    order = np.array([3, 0, 5, 4, 2, 1])  # an EmbeddingSet need not be in the list's order
    angle = np.array([reader.read(i)[0].mean() for i in order]) / 255 * np.pi / 2
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rows = rows_of(media, reader.ids()[order])
    assert order[rows].tolist() == [0, 1, 2, 3, 4, 5]
    ids, templates = pool_templates(vectors[rows], media.templates, media.media)
    pairs = read_pairs(put(tmp_path / "pairs.txt", PAIRS))
    scores = pair_scores(ids, templates, pairs.first, pairs.second)
    assert tar_at_far(scores, pairs.same) == pytest.approx(
        {f"tar@far={far:g}": 1.0 for far in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)}
    )
    gallery = read_subjects(put(tmp_path / "gallery.csv", GALLERY))
    probe = read_subjects(put(tmp_path / "probe.csv", PROBE))
    found = [templates[np.searchsorted(ids, part.templates)] for part in (probe, gallery)]
    report = identification(found[0], probe.subjects, found[1], gallery.subjects)
    assert report["top@1"] == 1 and report["map"] == 1 and report["mated"] == 1

    with pytest.raises(UserError, match=r"1 images have no embedding: 6\.jpg"):
        rows_of(media, reader.ids()[:5])
    (tmp_path / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 6 images are missing .*2\.jpg"):
        ijb_reader(tmp_path, media_file)
