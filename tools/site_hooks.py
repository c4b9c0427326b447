"""Hooks of mkdocs.yml that add README.md, as the first page, and CONTRIBUTING.md to docs/.

Both are at the top of the repository, where GitHub shows them; their links are adjusted.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

REPOSITORY = Path(__file__).parent.parent
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files, config):
    """Add the two pages."""
    for page, source in PAGES.items():
        text = re.sub(r"\]\(docs/", "](", (REPOSITORY / source).read_text())
        files.append(File.generated(config, page, content=linked(text, "")))
    return files


def on_page_markdown(markdown, **_):
    """Adjust links that lead from docs/ to the top of the repository."""
    return linked(markdown, "../")


def linked(text: str, top: str) -> str:
    """Return a page with its links to `PAGES`, which are in the folder ``top``, adjusted."""
    for page, source in PAGES.items():
        text = text.replace(f"]({top}{source}", f"]({page}")
    return text
