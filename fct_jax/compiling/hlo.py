"""Read a compiled program's text: its collectives, and its copies of large arrays."""

import math
import re
from collections import Counter
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# The first half of an asynchronous pair returns its operands, then its results.
_WITH_OPERANDS = ("all-gather", "collective-permute", "copy")
_BITS = re.compile(r"\d+")
_SHAPE = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(", re.MULTILINE)
_OP_NAME = re.compile(r'op_name="([^"]*)"')


class Instruction(NamedTuple):
    """An instruction of a compiled program.

    Attributes:
      kind: "all-reduce", "copy", …; an asynchronous pair has the name without "-start".
      size: bytes of its result on one device.
      source: the JAX operations that it comes from.
    """

    kind: str
    size: int
    source: str


def instructions(text: str) -> list[Instruction]:
    """Return all instructions of a compiled program; an asynchronous pair counts once."""
    found = []
    for line in text.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None or match[2].endswith("-done"):
            continue
        kind, shapes = match[2].removesuffix("-start"), _SHAPE.findall(match[1])
        if kind != match[2] and kind in _WITH_OPERANDS:
            shapes = [shape for shape in shapes if shape[1]]  # without the scalars of the pair
            shapes = shapes[len(shapes) // 2 :]
        size = sum(map(_bytes, shapes))
        source = _OP_NAME.search(line)
        found.append(Instruction(kind, size, source[1] if source else ""))
    return found


def collectives(text: str) -> list[Instruction]:
    """Return the instructions that move data between devices."""
    return [each for each in instructions(text) if each.kind in COLLECTIVES]


def copies(text: str, least: int) -> list[Instruction]:
    """Return the copies and transposes of at least ``least`` bytes on one device."""
    kinds = ("copy", "transpose")
    return [each for each in instructions(text) if each.kind in kinds and each.size >= least]


def by_kind(found: list[Instruction]) -> dict[str, tuple[int, int]]:
    """Return {kind: (count, total bytes)}."""
    count, size = Counter(), Counter()
    for each in found:
        count[each.kind] += 1
        size[each.kind] += each.size
    return {kind: (count[kind], size[kind]) for kind in count}


def _bytes(shape: tuple[str, str]) -> int:
    """Return the bytes of an array from its type and its sides, such as ("f32", "8,128")."""
    kind, sides = shape
    return math.prod(int(side) for side in sides.split(",") if side) * _width(kind)


def _width(kind: str) -> int:
    """Return the bytes of an element of a type: "bf16" has 2, "pred" 1."""
    bits = _BITS.search(kind)
    return max(int(bits[0]) // 8, 1) if bits else 1
