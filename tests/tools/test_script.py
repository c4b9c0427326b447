"""Shared properties of the tools: an example in every help, one line for every mistake."""

import ast
from pathlib import Path

import pytest

from fct_jax.errors import UserError
from tools.script import Parser, read_json, status

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("path", sorted(TOOLS.glob("*.py")), ids=lambda path: path.stem)
def test_help_shows_the_command(path):
    """A tool that can be run shows its command in the docstring, which is its help."""
    text = path.read_text()
    if "__main__" in text:
        said = ast.get_docstring(ast.parse(text))
        assert f"python tools/{path.name}" in said or f"python -m tools.{path.stem}" in said


def test_a_mistake_is_one_line(capsys, tmp_path):
    def mistaken(words):
        raise UserError(f"no such thing as {words[0]}")

    def absent(words):
        (tmp_path / words[0]).read_text()

    assert status(mistaken, ["x"]) == 1
    assert capsys.readouterr().err == "error: no such thing as x\n"
    assert status(absent, ["y"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'y'}: No such file or directory\n"
    parser = Parser("A tool.\n\n  python tools/it.py")
    assert status(parser.parse_args, ["--nothing"]) == 1
    assert capsys.readouterr().err == "error: unrecognized arguments: --nothing (see --help)\n"
    assert (status(lambda words: None, []), status(lambda words: 3, [])) == (0, 3)


def test_json_files(tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(UserError, match="report.json does not exist"):
        read_json(path)
    path.write_text("{")
    with pytest.raises(UserError, match="report.json is no JSON"):
        read_json(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
