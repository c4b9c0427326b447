"""Count what a scheduled program reads from and writes to a chip's main memory.

The compiler's own count, "bytes accessed", includes what stays in the chip's fast memory, and
counts what is fetched into it twice: for ResNet-50 on a v5e it is three times the traffic of the
main memory. A schedule says of each array in which memory it is.
"""

import re
from collections.abc import Sequence

from fct_jax.compiling.hlo import ARRAY, Computation, Line, computations, is_fast, size_of

_PARAMETER = re.compile(r"parameter\((\d+)\)")
_FREE = {
    *("parameter", "get-tuple-element", "tuple", "bitcast", "constant", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "while", "conditional", "call"),
}
_PART = ("slice", "dynamic-slice", "gather")  # read as much of their first operand as they return
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": -1}  # the operand written into the first one


def main_memory_bytes(text: str, turns: Sequence[int] = ()) -> int:
    """Return the bytes that a call of a program reads from and writes to main memory.

    Args:
      text: text of a compiled, scheduled program.
      turns: how often nested loops run, from the outermost; deeper ones count as running once.
    """
    parts = computations(text, turns)
    total = 0
    for part in parts.values():
        if part.fused:
            continue
        shapes = {line.name: line.shapes for line in part.lines}
        total += part.times * sum(_moved(line, shapes, parts) for line in part.lines)
    return total


def _moved(line: Line, shapes: dict[str, str], parts: dict[str, Computation]) -> int:
    """Return the bytes that an instruction reads and writes in main memory."""
    if line.kind in _FREE or line.kind.endswith(("-done", "-update")):
        return 0
    if line.kind == "custom-call" and '"ConcatBitcast"' in line.text:
        return 0  # a name for neighbouring arrays
    if line.kind in ("copy-start", "slice-start"):
        return _fetched(line)
    operands = [shapes.get(name, "") for name in line.operands]
    if line.kind in _PART:
        return _size(line.shapes) + min(_size(operands[0]), _whole(line.shapes))
    if line.kind in _IN_PLACE:
        return 2 * _size(operands[_IN_PLACE[line.kind]])
    if line.kind == "fusion":
        return _fused(line, operands, parts[line.called()[0]].lines)
    result = line.shapes
    if line.kind.endswith("-start") and "all-reduce" not in line.kind:
        result = result.partition("), ")[2] or result  # without the operands that it repeats
    return _size(result) + sum(map(_size, operands))


def _fetched(line: Line) -> int:
    """Return the traffic of an asynchronous copy; its shape is (to, from, …) or ((from), to, …)."""
    ends = ARRAY.findall(line.shapes)[:2]
    return min(map(size_of, ends)) * sum(not is_fast(end) for end in ends)


def _fused(line: Line, operands: list[str], body: list[Line]) -> int:
    """Return the traffic of a fusion, which may use only parts of its operands."""
    used: dict[str, list[Line]] = {}
    for each in body:
        for name in each.operands:
            used.setdefault(name, []).append(each)
    total = 0
    for each in body:
        if number := _PARAMETER.search(each.text):
            shape = operands[int(number[1])]
            total += min(_size(shape), _read(each.name, used, shape))
    writes = _size(line.shapes)
    updates = [each for each in body if each.kind in _IN_PLACE]
    if _whole(line.shapes) in {_whole(each.shapes) for each in updates}:
        inside = {each.name: each.shapes for each in body}
        writes = sum(_whole(inside[each.operands[_IN_PLACE[each.kind]]]) for each in updates)
    return total + writes


def _read(name: str, used: dict[str, list[Line]], shape: str) -> int:
    """Return how many bytes of an array are read by those that use it."""
    total = 0
    for user in used.get(name, []):
        if user.kind == "bitcast":
            total += _read(user.name, used, shape)
        elif user.kind in _PART and user.operands[0] == name:
            total += _whole(user.shapes)
        elif not (user.kind in _IN_PLACE and user.operands[0] == name):
            return _whole(shape)
    return total


def _size(shapes: str) -> int:
    """Return the bytes of those arrays that are in main memory."""
    return sum(size_of(each) for each in ARRAY.findall(shapes) if not is_fast(each))


def _whole(shapes: str) -> int:
    """Return the bytes of all arrays."""
    return sum(map(size_of, ARRAY.findall(shapes)))
