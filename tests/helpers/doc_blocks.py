"""Runs the code blocks of the pages as a reader would."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from patience import LONG

from fct_jax import cli

REPOSITORY = Path(__file__).parents[2]


def section(page: str, heading: str) -> str:
    """Return the text of a page (a path in the repository) below a heading, up to the next one."""
    text = (REPOSITORY / page).read_text()
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    level = len(heading) - len(heading.lstrip("#"))
    inside, code = [], False
    for line in rest.splitlines():
        code ^= line.startswith("```")
        if not code and re.match(rf"#{{1,{level}}} ", line):
            break
        inside.append(line)
    return "\n".join(inside)


def blocks(text: str, kind: str) -> list[str]:
    """Return the code blocks of a kind ("python", "sh", "text")."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def write_module(text: str) -> str:
    """Write the Python block of a text to the file that its first line names; return the module."""
    (block,) = blocks(text, "python")
    name = re.match(r"# (\w+)\.py\n", block)[1]
    Path(f"{name}.py").write_text(block)
    return name


def commands(text: str) -> list[list[str]]:
    """Return the words of each ``fct-jax`` command in a text's shell blocks."""
    joined = "\n".join(blocks(text, "sh")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in joined.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "fct-jax"]


def run(words: list[str], extra: tuple[str, ...] = ()) -> int:
    """Run one of `commands`, in this process unless it parses absl flags; return its exit code."""
    if words[0] not in ("train", "embed", "evaluate"):
        return cli.main([*words, *extra])
    command = [sys.executable, "-m", "fct_jax", *words, *extra]
    done = subprocess.run(command, timeout=LONG, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.returncode
