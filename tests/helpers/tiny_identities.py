"""Tiny Market-1501, MS1M and IJB-C in their released formats: each person has a colour."""

import io
import struct

import numpy as np
from PIL import Image

CAMERAS = 3


def picture(person: int, seed: int, size: tuple[int, int], spread: float = 90) -> Image.Image:
    """Return an image (width, height) of a person's colours, upper and lower half, with noise.

    ``spread`` is how much the colours of two persons differ, in grey levels.
    """
    colours = 128 + np.random.default_rng([7, person]).uniform(-spread, spread, (2, 3))
    noise = np.random.default_rng([person, seed]).normal(0, 25, (size[1], size[0], 3))
    halves = np.where(np.arange(size[1])[:, None, None] < size[1] // 2, colours[0], colours[1])
    return Image.fromarray(np.clip(halves + noise, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def write_market1501(root, trained=8, tested=6):
    """Write training persons 2, 4, … and test persons 1, 3, …, distractors (0000), junk (-1)."""

    def put(folder, person, camera, number, box):
        spread = 90 if folder.endswith("train") else 5  # test persons are hard to tell apart
        name = f"{person:04d}" if person >= 0 else "-1"
        name += f"_c{camera}s1_{number:06d}_{box:02d}.jpg"
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_bytes(encoded(picture(person % 997, number, (16, 32), spread)))

    for person in range(2, 2 * trained + 1, 2):
        for number in range(5 + person % 3):  # persons have different numbers of images
            put("bounding_box_train", person, 1 + number % CAMERAS, number, 1)
    for person in range(1, 2 * tested, 2):
        put("query", person, 1, 100, 0)
        for number in range(4):  # the first one is from the query's camera
            put("bounding_box_test", person, 1 + number % CAMERAS, 101 + number, 1)
    for number in range(3):
        put("bounding_box_test", 0, 1 + number, 500 + number, 2)
        put("bounding_box_test", -1, 1 + number, 600 + number, 3)
    (root / "query" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    return root


def write_ms1m(root, persons=6, images=6):
    """Write train.rec and train.idx as InsightFace does: header, images, persons."""
    start = 1 + persons * images

    def labelled(labels, image=b"", number=0):
        head = struct.pack("<IfQQ", len(labels), 0.0, number, 0)
        return head + struct.pack(f"<{len(labels)}f", *labels) + image

    contents = [labelled([float(start), float(start + persons)])]
    for key in range(1, start):
        person = (key - 1) // images
        face = encoded(picture(person + 20, key, (16, 16)))
        if person % 2:  # both kinds of header occur
            contents.append(labelled([float(person), 0.0], face, key))
        else:
            contents.append(struct.pack("<IfQQ", 0, float(person), key, 0) + face)
    for person in range(persons):
        first = 1 + person * images
        contents.append(labelled([float(first), float(first + images)], b"", start + person))
    rec, idx = b"", ""
    for key, content in enumerate(contents):
        idx += f"{key}\t{len(rec)}\n"
        rec += struct.pack("<II", 0xCED7230A, len(content)) + content + b"\0" * (-len(content) % 4)
    root.mkdir(parents=True, exist_ok=True)
    (root / "train.rec").write_bytes(rec)
    (root / "train.idx").write_text(idx)
    return root


def write_ijbc(root, persons=8):
    """Write a probe template (a photo and a video) and a gallery template (a photo) per person.

    Return the file of images and templates.
    """
    (root / "images").mkdir(parents=True)
    media, genuine = [], []
    galleries = {1: "TEMPLATE_ID,SUBJECT_ID,FILENAME\n", 2: "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"}
    probes = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"
    number = 0
    for person in range(persons):
        probe, gallery = 10 + person, 50 + person
        for template, medium in ((probe, 1), (probe, 2), (probe, 2), (gallery, 3)):
            number += 1
            face = picture(person + 60, number, (20, 24), 5)
            (root / "images" / f"{number}.jpg").write_bytes(encoded(face))
            media.append(f"{number}.jpg {template} {10 * person + medium}\n")
        probes += f"{probe},{person + 700},img/{number}.png\n"
        galleries[1 + person % 2] += f"{gallery},{person + 700},img/{number}.png\n"
        genuine.append((probe, gallery))
    pairs = [
        f"{probe} {gallery} {int(i == j)}\n"
        for i, (probe, _) in enumerate(genuine)
        for j, (_, gallery) in enumerate(genuine)
    ]
    (root / "ijbc_face_tid_mid.txt").write_text("".join(media))
    (root / "ijbc_template_pair_label.txt").write_text("".join(pairs))
    (root / "ijbc_1N_probe_mixed.csv").write_text(probes)
    for which, text in galleries.items():
        (root / f"ijbc_1N_gallery_G{which}.csv").write_text(text)
    return root / "ijbc_face_tid_mid.txt"
