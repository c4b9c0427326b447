"""The pages: the site builds without a warning, and every path that they name is there."""

import os
import re
import subprocess
import sys

import doc_blocks
import pytest
from patience import LONG

REPOSITORY = doc_blocks.REPOSITORY
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{p.name}" for p in (REPOSITORY / "docs").glob("*.md")),
]


@pytest.mark.slow
def test_the_site_builds_and_every_link_leads_somewhere(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed (extra docs)")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        timeout=LONG,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert not done.returncode, done.stderr
    made = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {"index", "contributing", "upgrade", "methods"} <= made
    # A page that the menu lacks is also a warning; this checks that none is left out.
    assert {path.stem for path in (REPOSITORY / "docs").glob("*.md")} <= made


def linked(page: str) -> list[str]:
    """Return the links of a page that are not web addresses."""
    text = re.sub(r"^```.*?^```", "", (REPOSITORY / page).read_text(), flags=re.DOTALL | re.M)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES)
def test_links_in_the_repository_lead_to_files_and_headings(page):
    """The links must work on GitHub, which the site's builder does not check."""
    for link in linked(page):
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert target.is_file(), f"{page}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page):
    """This covers names such as `tools/benchmark.py`, and those below fct_jax/ or configs/."""
    text = (REPOSITORY / page).read_text()
    for name in re.findall(r"(?<![\w/.-])((?:fct_jax|tools|tests|configs)/[\w/.]*\w)", text):
        path = REPOSITORY / name
        assert path.exists(), f"{page}: {name}"


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= 130
