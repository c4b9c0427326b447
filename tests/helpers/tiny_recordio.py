"""RecordIO pairs as InsightFace releases them, written byte for byte as MXNet writes them."""

import io
import struct

from PIL import Image

from fct_jax.data.recordio import MAGIC

MAGIC_BYTES = struct.pack("<I", MAGIC)


def part(kind: int, content: bytes) -> bytes:
    head = struct.pack("<II", MAGIC, kind << 29 | len(content))
    return head + content + b"\0" * (-len(content) % 4)


def frame(content: bytes) -> bytes:
    """Return a record; content is cut where the magic number is at a multiple of 4 bytes."""
    pieces, begin = [], 0
    for at in range(0, len(content) - 3, 4):
        if content[at : at + 4] == MAGIC_BYTES:
            pieces.append(content[begin:at])
            begin = at + 4
    pieces.append(content[begin:])
    if len(pieces) == 1:
        return part(0, content)
    kinds = [1] + [2] * (len(pieces) - 2) + [3]
    return b"".join(part(kind, piece) for kind, piece in zip(kinds, pieces, strict=True))


def pack(labels, image: bytes = b"", number: int = 0) -> bytes:
    """Return a header with one label (a number) or several (a list), followed by the image."""
    if isinstance(labels, list):
        header = struct.pack("<IfQQ", len(labels), 0.0, number, 0)
        return header + struct.pack(f"<{len(labels)}f", *labels) + image
    return struct.pack("<IfQQ", 0, labels, number, 0) + image


def write(folder, contents: dict[int, bytes]):
    rec, lines = b"", []
    for key, content in contents.items():
        lines.append(f"{key}\t{len(rec)}\n")
        rec += frame(content)
    folder.mkdir(exist_ok=True)
    (folder / "train.rec").write_bytes(rec)
    (folder / "train.idx").write_text("".join(lines))
    return folder


def png(value: int, size=(7, 5)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 2 * value, 255 - value)).save(file, "PNG")
    return file.getvalue()


def insightface(people=(3, 1, 2), two_labels=True) -> dict[int, bytes]:
    """Return header, images and identities as records 0, 1..a-1 and a..b-1."""
    images, identities, key = {}, {}, 1
    start = 1 + sum(people)
    for person, count in enumerate(people):
        identities[start + person] = pack([float(key), float(key + count)], b"", start + person)
        for _ in range(count):
            label = [float(person), 0.0] if two_labels else float(person)
            images[key] = pack(label, png(10 * key), key)
            key += 1
    return {0: pack([float(start), float(start + len(people))]), **images, **identities}
