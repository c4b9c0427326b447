"""The corpus of tools/text_pair.py; its encoders need wheels that tests do not install."""

from tools.text_pair import CHARACTERS, docstrings


def test_first_sentences_are_queries_for_the_rest(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    rest = "It also says what happens otherwise, at some length. " * 8
    text = f'"""{{}} returns the sum of its two arguments. {rest}{{}}"""\n'
    again = " ".join(text.format("That other function", "x").split())
    short = 'def short():\n    """Do nothing. Nothing at all."""\n'
    (package / "one.py").write_text(
        text.format("This function", "") + f"def a():\n    {again}\n" + short
    )
    (package / "broken.py").write_text("def (\n")
    found = docstrings(tmp_path, 5)
    assert [query for query, _ in found] == ["This function returns the sum of its two arguments."]
    assert found[0][1] == rest[:CHARACTERS]  # the second one has the same text
    assert docstrings(tmp_path, 1) == found
