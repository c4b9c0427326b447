"""report.json, report.md, report.html and curves.png from one description."""

import html
import json
import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from patience import LONG
from PIL import Image

from fct_jax.runtime.report import FILES, Curve, Panel, Report
from fct_jax.runtime.tables import Table

NAME = "<i>a & b</i>"  # a user chose it
ROOT = Path(__file__).resolve().parents[2]


def described():
    x = np.linspace(0, 100, 5).tolist()
    y = [40.0, 55.0, 61.5, 64.0, 70.0]
    curves = [
        Curve("FCT · random", x, y, group="FCT", line="--"),
        Curve(
            NAME,
            x,
            [50.0, 56.0, float("nan"), 66.0, 71.0],
            [49.0] * 5,
            [72.0] * 5,
            line=(0, (3, 1)),
        ),
    ]
    panels = [Panel(title, curves, {"old/old": 30.0}) for title in ("CMC@1", "mAP")]
    table = Table("Retrieval (%)", ["model", *map(str, range(20))], [[NAME, *["45.1"] * 20]])
    return Report(
        "Evaluation of " + NAME,
        ["FCT keeps most of the gain.", "Random order is as good."],
        [table],
        panels,
        {"gallery": "90 items"},
        {"re-embed all": "3.2 h"},
        ["FCT has no uncertainty."],
        {"data": {"name": "digits"}, "ks": (1, 5), "where": Path("x/y")},
        {"retrieval": {"map": np.float32(0.5), "bad": float("nan")}, "verdict": {"way": "keep"}},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("report")
    described().write(made)
    return made


def test_four_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    with Image.open(folder / "curves.png") as picture:
        assert picture.size[0] > 800
    written = json.loads((folder / "report.json").read_text())
    assert written["retrieval"] == {"map": 0.5, "bad": None}
    assert written["verdict"] == {"way": "keep"}
    assert written["settings"] == {"data": {"name": "digits"}, "ks": [1, 5], "where": "x/y"}
    text = (folder / "report.md").read_text()
    for part in ("**FCT keeps most", "- gallery: 90 items", "| data.name | digits |", "3.2 h"):
        assert part in text
    assert text.count("&lt;i>a & b") >= 1


def test_without_curves_there_is_no_picture(tmp_path):
    Report("t", ["v"]).write(tmp_path)
    assert not (tmp_path / "curves.png").exists()
    assert "<svg" not in (tmp_path / "report.html").read_text()


def test_verdict_is_printed_last(capsys):
    described().show()
    assert capsys.readouterr().out.strip().endswith("Random order is as good.")


class Page(HTMLParser):
    """Collects elements, attributes and text; counts opened and closed elements."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self):
        super().__init__()
        self.elements, self.open, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def parsed(folder):
    page = Page()
    page.feed((folder / "report.html").read_text())
    page.close()
    assert page.open == []
    return page


def test_the_page_needs_no_network(folder):
    page = parsed(folder)
    for tag, attributes in page.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base"), tag
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,"
        assert not any(name.startswith("on") for name in attributes)
    text = (folder / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp", text)
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_the_page_says_everything(folder):
    page = parsed(folder)
    words = " ".join(page.words)
    for part in (
        "FCT keeps most of the gain.",
        NAME,
        "90 items",
        "3.2 h",
        "no uncertainty",
        "digits",
    ):
        assert part in words
    tags = [tag for tag, _ in page.elements]
    assert "i" not in tags  # the user's name is text
    assert sum("panel" in (a.get("class") or "").split() for _, a in page.elements) == 2
    points = [a for tag, a in page.elements if tag == "circle"]
    assert len(points) == 2 * (5 + 4)  # one value is unknown
    assert {a["data-value"] for a in points} >= {"40.0", "50.0 (49.0–72.0)"}
    assert tags.count("title") == 1 + len(points)  # values without JavaScript


def test_points_stand_where_their_values_are(folder):
    """Equal steps of a value are equal steps upwards on the page."""
    points = [a for tag, a in parsed(folder).elements if tag == "circle"][:5]
    heights = np.array([float(a["cy"]) for a in points])
    values = np.array([float(a["data-value"]) for a in points])
    slope = np.diff(heights) / np.diff(values)
    np.testing.assert_allclose(slope, slope[0], rtol=0.02)
    assert slope[0] < 0


def test_style_and_script_are_packaged():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = listed["tool"]["setuptools"]["package-data"]["fct_jax"]
    for name in ("report.css", "report.js"):
        assert any(Path(f"runtime/{name}").match(pattern) for pattern in patterns)


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PROBE = """<script>
for (const svg of document.querySelectorAll("svg.panel")) {
  const box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove",
    {clientX: box.left + box.width / 2, clientY: box.top + 40}));
}
document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth;
document.body.dataset.inner = innerWidth;
document.body.dataset.back = getComputedStyle(document.body).backgroundColor;
</script></body>"""


FRAME = """<!DOCTYPE html><html style="color-scheme: light dark"><body>
<iframe width="{width}" height="900" style="border: 0" srcdoc="{page}"></iframe><pre></pre>
<script>
document.querySelector("iframe").onload = (event) => {{
  const made = event.target.contentDocument.documentElement.outerHTML;
  document.querySelector("pre").textContent = made;
}};
</script></body></html>"""


def browse(text, folder, width, *flags):
    """Return the page as the browser renders it, and its console output.

    A frame can be as narrow as a phone; the browser's own window cannot.
    """
    path = folder / "frame.html"
    path.write_text(FRAME.format(width=width, page=html.escape(text)))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--window-size=1400,1000", "--v=0", "--dump-dom", *flags, f"file://{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=True)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    page = Page()
    page.feed(html.unescape(re.search("<pre>(.*)</pre>", done.stdout, re.DOTALL)[1]))
    return page, said


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser(folder, tmp_path, width, dark):
    """The page has no script errors or sideways scrolling and shows values, in light and dark."""
    text = (folder / "report.html").read_text().replace("</body>", PROBE)
    flags = ["--blink-settings=preferredColorScheme=0"] if dark else []
    page, said = browse(text, tmp_path, width, *flags)
    assert said == []
    body = next(a for tag, a in page.elements if tag == "body")
    assert int(body["data-inner"]) == width and int(body["data-wide"]) <= 0
    assert body["data-back"] == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")
    box = next(a for _, a in page.elements if a.get("id") == "values")
    assert "hidden" not in box
    assert "gallery re-embedded (%): 50" in page.words and "61.5" in page.words
    assert [tag for tag, _ in page.elements].count("title") == 1  # the box shows the value instead


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_script_error_would_be_seen(folder, tmp_path):
    text = (folder / "report.html").read_text()
    text = text.replace('"use strict";', '"use strict"; missing();')
    assert any("missing is not defined" in line for line in browse(text, tmp_path, 390)[1])
