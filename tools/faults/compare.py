"""Compares the files of a killed run with those of an undisturbed one."""

import json
from pathlib import Path

# These may differ: times, the files that TensorBoard and Orbax name by time or at random, and
# the compiled program, whose text is not part of the model.
_TIMES = ("train/steps_per_second", "train/data_wait")
_FREE = ("tensorboard", "checkpoints")
_PROGRAM = "program.stablehlo"


def differences(reference: Path, home: Path, name: str) -> list[str]:
    """Return a line for each difference in all directories, since a run also writes into others.

    Args:
      reference, home: the directories in which the undisturbed and the killed run were started.
      name: name of the run's own directory in them.
    """
    one, other = _files(reference), _files(home)
    found = [f"{path} is missing" for path in sorted(one.keys() - other.keys())]
    found += [f"{path} was left behind" for path in sorted(other.keys() - one.keys())]
    for path in sorted(one.keys() & other.keys()):
        if path.name == _PROGRAM:
            continue
        if path.name == "metrics.jsonl":
            found += _entries_differ(one[path], other[path], path)
        elif one[path].read_bytes() != other[path].read_bytes():
            found.append(f"{path} differs")
    kept = [sorted(p.name for p in (at / name).glob("checkpoints/*")) for at in (reference, home)]
    if kept[0] != kept[1]:
        found.append(f"checkpoints {kept[1]}, undisturbed {kept[0]}")
    return found


def last_step(workdir: Path, since: float = 0.0) -> int:
    """Return the step of ``metrics.jsonl``'s last whole line; −1 if none came after ``since``."""
    path = workdir / "metrics.jsonl"
    try:
        if path.stat().st_mtime < since:
            return -1
        lines = path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return -1
    return json.loads(lines[-1])["step"] if lines else -1


def _files(home: Path) -> dict[Path, Path]:
    """Return files by their path below ``home``, except those that are free to differ."""
    found = {}
    for path in home.rglob("*"):
        relative = path.relative_to(home)
        if path.is_file() and relative != Path("output") and not set(_FREE) & set(relative.parts):
            found[relative] = path
    return found


def _entries_differ(one: Path, other: Path, name: Path) -> list[str]:
    lines = [_entries(one), _entries(other)]
    if lines[0] == lines[1]:
        return []
    steps = [[entry["step"] for entry in entries] for entries in lines]
    if steps[0] != steps[1]:
        return [f"{name} has the steps {steps[1]}, undisturbed {steps[0]}"]
    step = next(a["step"] for a, b in zip(*lines, strict=True) if a != b)
    return [f"{name} has other values at step {step}"]


def _entries(path: Path) -> list[dict]:
    """Return the log without the entries that depend on time."""
    entries = map(json.loads, path.read_text().splitlines())
    return [{k: v for k, v in entry.items() if k not in _TIMES} for entry in entries]
