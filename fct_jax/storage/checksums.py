"""Checksums of an EmbeddingSet's files: of the vectors per shard, of the other files as a whole.

They are CRC-32 (``zlib.crc32``) of the rows' bytes in the file, or of a whole file, written as
eight hexadecimal digits. They detect damage, not forgery.
"""

import functools
import hashlib
import os
import tokenize
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fct_jax.errors import UserError

SHARD_SIZE = 65_536  # rows
UNREADABLE = (ValueError, OSError, EOFError, tokenize.TokenError)  # of NumPy, for a damaged file
_BYTES = 1 << 22  # read together
_ON_PURPOSE = "if it was changed on purpose, remove {key!r} from meta.json"


def update(checksum: int, array: np.ndarray) -> int:
    """Return the checksum continued over an array's bytes; it starts with 0."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), checksum)


def combined(first: int, second: int, size: int) -> int:
    """Return the CRC-32 of two byte strings in a row, from those of each.

    Appending ``size`` bytes multiplies the polynomial of the first by x^(8·size) modulo that of
    CRC-32, as zlib's ``crc32_combine`` does (https://github.com/madler/zlib, crc32.c).

    Args:
      first, second: checksums of the strings.
      size: number of bytes of the second.
    """
    return _times(_power(size), first) ^ second


@functools.lru_cache(maxsize=64)
def _power(size: int) -> int:
    """Return x^(8·size) modulo the polynomial of CRC-32."""
    power, base = 1 << 31, 1 << 23  # x^0 and x^8, bits in reflected order
    while size:
        if size & 1:
            power = _times(power, base)
        base, size = _times(base, base), size >> 1
    return power


def _times(a: int, b: int) -> int:
    """Return the product of two polynomials modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
    return product


def text(checksum: int) -> str:
    """Return the checksum in the form in which files hold it."""
    return f"{checksum:08x}"


def of_part(path: Path, start: int, stop: int) -> str:
    """Return the checksum of a file's bytes from start to stop; they are read, not mapped."""
    checksum, buffer = 0, memoryview(bytearray(min(_BYTES, max(stop - start, 1))))
    with path.open("rb") as file:
        file.seek(start)
        while start < stop:
            read = file.readinto(buffer[: stop - start])
            if not read:
                break
            checksum = zlib.crc32(buffer[:read], checksum)
            start += read
    return text(checksum)


def of_file(path: Path) -> str:
    """Return the checksum of a whole file."""
    return of_part(path, 0, path.stat().st_size)


def of_rows(path: Path, offset: int, width: int, spans: Iterable[tuple[int, int]]) -> list[str]:
    """Return the checksum of each span of rows (start, count) of a file, several at once.

    Args:
      path: the file.
      offset: bytes before row 0.
      width: bytes of a row.
      spans: rows start to start + count.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib and reading leave the lock to others
        return list(
            pool.map(
                lambda span: of_part(
                    path, offset + span[0] * width, offset + (span[0] + span[1]) * width
                ),
                spans,
            )
        )


def shards_of(path: Path, shard_size: int = SHARD_SIZE) -> list[dict]:
    """Return the entry ``shards`` of ``meta.json`` for a complete ``vectors.npy``."""
    count, offset, width = _layout(path)
    spans = [(a, min(shard_size, count - a)) for a in range(0, count, shard_size)]
    sums = of_rows(path, offset, width, spans)
    return [
        {"start": start, "count": rows, "checksum": checksum}
        for (start, rows), checksum in zip(spans, sums, strict=True)
    ]


def check_whole(folder: Path, meta: dict) -> None:
    """Raise UserError unless every file has its full length and every row is in a shard."""
    try:
        _check_whole(folder, meta.get("shards"), meta.get("checksums", {}), meta.get("count"))
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"{folder}/meta.json is damaged: 'shards' or 'checksums' cannot be read"
        ) from None


def _check_whole(folder: Path, shards: list | None, files: dict, expected: int | None) -> None:
    for name in files.keys():  # noqa: SIM118 – only an object of JSON has them
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, but meta.json lists it")
    if shards is None:
        return
    path = folder / "vectors.npy"
    count, offset, width = _layout(path)
    if expected not in (None, count):
        raise UserError(f"{folder} is incomplete: {count} rows of {expected}")
    at = 0
    for shard in [*shards, {"start": count, "count": 0}]:
        if shard["start"] != at:
            first, last = sorted((at, shard["start"]))
            raise UserError(f"{folder}/meta.json has no shard, or two, of rows {first}–{last - 1}")
        at += shard["count"]
    there = (path.stat().st_size - offset) // width
    if there < count:
        raise UserError(f"{path} is cut off: {_shard_with(shards, there)} is not whole")


def digest_of(array: np.ndarray) -> str:
    """Return a fingerprint of an array's values, independent of the width of integers or text."""
    digest = hashlib.sha256(array.dtype.kind.encode())
    for start in range(0, len(array), 1 << 20):
        part = array[start : start + (1 << 20)]
        if part.dtype.kind == "U":
            digest.update("\0".join(part.tolist()).encode() + b"\0")
        else:
            digest.update(np.ascontiguousarray(part, np.int64).tobytes())
    return digest.hexdigest()[:16]


def check_files(folder: Path, meta: dict) -> None:
    """Compare the checksum of every file but ``vectors.npy``. Raises UserError with the file."""
    for name, expected in meta.get("checksums", {}).items():
        if of_file(folder / name) != expected:
            raise UserError(
                f"{folder / name} is damaged: its checksum is not that of meta.json "
                f"({_ON_PURPOSE.format(key='checksums')})"
            )


class RunningShards:
    """Compares the checksums of shards with rows that are read anyway, block after block.

    Attributes:
      state: checksum of the current shard, from which a later pass resumes.
    """

    def __init__(self, path: Path, shards: list[dict], row: int = 0, state: int = 0):
        """Start, or resume from the ``row`` and ``state`` of an earlier pass that stopped."""
        self._path, self._shards, self._row, self.state = path, shards, row, state
        self._number = next(
            (n for n, s in enumerate(shards) if row < s["start"] + s["count"]), len(shards)
        )

    def take(self, vectors: np.ndarray) -> int:
        """Take the next rows in the file's type; return their checksum.

        Raises UserError if they are damaged.
        """
        total = 0
        while len(vectors) and self._number < len(self._shards):
            shard = self._shards[self._number]
            here = vectors[: shard["start"] + shard["count"] - self._row]
            found = update(0, here)
            self.state = combined(self.state, found, here.nbytes)
            total = combined(total, found, here.nbytes)
            self._row, vectors = self._row + len(here), vectors[len(here) :]
            if self._row == shard["start"] + shard["count"]:
                if text(self.state) != shard.get("checksum"):
                    raise _damaged(self._path, self._shards, shard)
                self._number, self.state = self._number + 1, 0
        return total


def check_content(folder: Path, meta: dict) -> None:
    """Raise UserError, naming the file and the shard's rows, if a checksum differs."""
    check_files(folder, meta)
    check_rows(folder, meta)


def check_rows(folder: Path, meta: dict, start: int = 0, stop: int | None = None) -> None:
    """Check the shards that begin in a range of rows (None: to the end), as `check_content`."""
    shards, path = meta.get("shards"), folder / "vectors.npy"
    if not shards:
        return
    _, offset, width = _layout(path)
    here = [s for s in shards if start <= s["start"] and (stop is None or s["start"] < stop)]
    sums = of_rows(path, offset, width, [(s["start"], s["count"]) for s in here])
    for shard, found in zip(here, sums, strict=True):
        if found != shard.get("checksum"):
            raise _damaged(path, shards, shard)


def _damaged(path: Path, shards: list[dict], shard: dict) -> UserError:
    return UserError(
        f"{path} is damaged in {_shard_with(shards, shard['start'])}: their checksum is "
        f"not that of meta.json ({_ON_PURPOSE.format(key='shards')})"
    )


def _shard_with(shards: list[dict], row: int) -> str:
    for number, shard in enumerate(shards):
        if row < shard["start"] + shard["count"]:
            return f"shard {number} (rows {shard['start']}–{shard['start'] + shard['count'] - 1})"
    return f"row {row}"


def _layout(path: Path) -> tuple[int, int, int]:
    """Return (rows, bytes before row 0, bytes of a row) of an .npy file, by its header."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, by_columns, dtype = read(file)
            offset = file.tell()
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if by_columns or len(shape) != 2:
        raise UserError(f"{path} does not hold rows: shape {shape}, by columns: {by_columns}")
    return shape[0], offset, shape[1] * dtype.itemsize
