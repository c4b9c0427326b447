"""Read a compiled program's text: its collectives, and its copies of large arrays."""

import math
import re
from collections import Counter
from collections.abc import Sequence
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
_WITH_OPERANDS = ("all-gather", "collective-permute", "copy", "move")
_BITS = re.compile(r"\d+")
# Type, sides and layout of an array; S(1) in its layout is a chip's fast memory.
ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\](\{[^{}]*\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*?)\)(?:, |$)")
_NAME = re.compile(r"%([\w.-]+)")
_LOOP = re.compile(r"\b(?:body|condition)=%?([\w.-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([\w.-]+)|\bbranch_computations=\{([^}]*)\}")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")


class Line(NamedTuple):
    """A line of a program: ``%name = shapes kind(%operand, …), …``."""

    name: str
    kind: str
    shapes: str
    operands: tuple[str, ...]
    text: str

    def called(self) -> list[str]:
        """Return the names of the computations that it runs once."""
        names = [one or several for one, several in _CALLED.findall(self.text)]
        return [name.strip().lstrip("%") for each in names for name in each.split(",")]


class Computation(NamedTuple):
    """A part of a program.

    Attributes:
      lines: its instructions.
      times: how often a call of the program runs it.
      fused: whether it is the inside of a single instruction of another computation.
    """

    lines: list[Line]
    times: int
    fused: bool


class Instruction(NamedTuple):
    """An instruction of a compiled program.

    Attributes:
      kind: "all-reduce", "copy", …; an asynchronous pair has the name without "-start", and a copy
        from one of the chip's memories to another, in the same form, is a "move".
      size: bytes of its result on one device.
      source: the JAX operations that it comes from.
      times: how often a call of the program runs it.
    """

    kind: str
    size: int
    source: str
    times: int = 1


def computations(text: str, turns: Sequence[int] = ()) -> dict[str, Computation]:
    """Return the parts of a program that are run, by their names.

    Args:
      text: text of a compiled program.
      turns: how often nested loops run, from the outermost; deeper ones count as running once.
    """
    lines, entry = _lines(text)
    found: dict[str, Computation] = {}
    waiting = [(entry, 0, False)]
    while waiting:
        name, depth, fused = waiting.pop()
        if name in found or name not in lines:
            continue
        found[name] = Computation(lines[name], math.prod(turns[:depth]), fused)
        for line in lines[name]:
            waiting += [(loop, depth + 1, fused) for loop in _LOOP.findall(line.text)]
            inside = fused or line.kind not in ("call", "conditional")
            waiting += [(called, depth, inside) for called in line.called()]
    return found


def instructions(text: str, turns: Sequence[int] = ()) -> list[Instruction]:
    """Return all instructions of a compiled program.

    An asynchronous pair counts once, and so does a collective that is written in several
    computations because others run beside its parts.
    """
    found, channels = [], set()
    for computation in computations(text, turns).values():
        for line in computation.lines:
            if line.kind.endswith("-done"):
                continue
            kind = line.kind.removesuffix("-start")
            if kind in COLLECTIVES and (channel := _CHANNEL.search(line.text)):
                if channel[1] in channels:
                    continue
                channels.add(channel[1])
            shapes = ARRAY.findall(line.shapes)
            if line.kind == "copy-start" and is_fast(shapes[0]) != is_fast(shapes[1]):
                kind = "move"
            if line.kind.endswith("-start") and kind in _WITH_OPERANDS:
                shapes = [shape for shape in shapes if shape[1]]  # without the pair's scalars
                shapes = shapes[len(shapes) // 2 :]
            source = _OP_NAME.search(line.text)
            size = sum(map(size_of, shapes))
            found.append(Instruction(kind, size, source[1] if source else "", computation.times))
    return found


def collectives(text: str, turns: Sequence[int] = ()) -> list[Instruction]:
    """Return the instructions that move data between devices."""
    return [each for each in instructions(text, turns) if each.kind in COLLECTIVES]


def copies(text: str, least: int) -> list[Instruction]:
    """Return the copies and transposes of at least ``least`` bytes on one device."""
    kinds = ("copy", "transpose")
    return [each for each in instructions(text) if each.kind in kinds and each.size >= least]


def by_kind(found: list[Instruction]) -> dict[str, tuple[int, int]]:
    """Return {kind: (count, total bytes)} of a call."""
    count, size = Counter(), Counter()
    for each in found:
        count[each.kind] += each.times
        size[each.kind] += each.times * each.size
    return {kind: (count[kind], size[kind]) for kind in count}


def size_of(array: tuple[str, str, str]) -> int:
    """Return the bytes of an array as `ARRAY` finds it, such as ("f32", "8,128", "{1,0}")."""
    kind, sides, _ = array
    bits = _BITS.search(kind)  # "bf16" has 2 bytes, "pred" 1
    width = max(int(bits[0]) // 8, 1) if bits else 1
    return math.prod(int(side) for side in sides.split(",") if side) * width


def is_fast(array: tuple[str, str, str]) -> bool:
    """Return whether an array is in a chip's fast memory, and not in its main memory."""
    return "S(" in array[2]


def _lines(text: str) -> tuple[dict[str, list[Line]], str]:
    """Return {computation: its lines}, and the name of the first that runs."""
    found: dict[str, list[Line]] = {}
    entry, lines = "", []
    for text_line in text.splitlines():
        begins = _COMPUTATION.match(text_line)
        if begins:
            lines = found.setdefault(begins[2], [])
            entry = begins[2] if begins[1] else entry
        elif match := _INSTRUCTION.match(text_line):
            operands = tuple(_NAME.findall(match[4]))
            lines.append(Line(match[1], match[3], match[2], operands, text_line))
    return found, entry
