from __future__ import annotations

import base64
import io
import re
import shutil
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Request, sync_playwright

from dmlscale.evaluation.figures.recall_curve import HOW_TO_READ, recall_curve
from dmlscale.evaluation.figures.style import png
from dmlscale.evaluation.report import Section, html_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<script>document.title = 'mine'</script>\"><img src=x onerror=\"document.title='mine'\">{{ 7*7 }}"
METRICS = {"recall_at_1": 0.634, "map_at_r": 0.30219, "eer": 0.041, "num_queries": 11034.0, "nmi": float("nan")}


def picture(width: int = 60, height: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width), 200, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def report(text: str = "how to read it") -> str:
    figure = png(recall_curve([1, 2], [0.6, 0.7]))
    return html_report(
        f"a run {text}",
        [("run", text), ("dataset", "glyphs")],
        METRICS,
        {"recall_at_1": (0.61, 0.66), "map_at_r": (float("nan"), float("nan"))},
        {"recall_at_1": 0.21},
        [Section(text, HOW_TO_READ, figure, text), Section("漢字", text, picture(), "grey")],
    )


class Reader(HTMLParser):
    """Tags with their attributes, and the cells of tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def test_the_table_has_metrics_intervals_and_raw_pixels() -> None:
    cells = np.array(Reader(report()).cells).reshape(-1, 4)
    assert cells.tolist() == [
        ["Metric", "This model", "95 % interval", "Raw pixels"],
        ["recall_at_1", "0.6340", "0.6100 \N{EN DASH} 0.6600", "0.2100"],
        ["map_at_r", "0.3022", "", ""],
        ["eer (lower is better)", "0.0410", "", ""],
        ["num_queries", "11,034", "", ""],
        ["nmi", "none", "", ""],
    ]


def test_columns_and_parts_that_nothing_fills_are_left_out() -> None:
    html = html_report("a run", [], {"recall_at_1": 0.5}, {}, {}, [])
    assert Reader(html).cells == ["Metric", "This model", "recall_at_1", "0.5000"]
    assert 'id="run"' not in html
    assert "<table" not in html_report("a run", [("a", "b")], {}, {}, {}, [])


def test_figures_are_within_the_file_and_nothing_is_asked_for() -> None:
    tags = Reader(report()).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    stored = [base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,")) for image in images]
    assert stored[1] == picture()
    assert (images[1]["width"], images[1]["height"], images[1]["alt"]) == ("60", "40", "grey")
    assert not [tag for tag, _ in tags if tag in ("script", "link", "iframe", "object", "base")]
    for _, attributes in tags:
        for name in ("src", "href", "action", "srcset"):
            assert re.match(r"data:|#", attributes.get(name) or "#")
    style = re.search(r"<style>(.*?)</style>", report(), re.S)
    assert style is not None
    assert not re.search(r"url\(|@import", style[1])


def test_the_contents_lead_to_every_part() -> None:
    tags = Reader(report()).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert [attributes["href"] for tag, attributes in tags if tag == "a"] == [f"#{name}" for name in ids]
    assert len(set(ids)) == len(ids) == 4


def test_hostile_names_are_text() -> None:
    tags = [tag for tag, _ in Reader(report(HOSTILE)).tags]
    assert "script" not in tags
    assert tags.count("img") == 2
    assert not [name for _, attributes in Reader(report(HOSTILE)).tags for name in attributes if name.startswith("on")]
    assert "{{ 7*7 }}" in report(HOSTILE)


def test_a_figure_that_is_no_picture() -> None:
    with pytest.raises(ValueError, match="'Map' must be the bytes of a PNG"):
        html_report("a", [], {}, {}, {}, [Section("Map", "", b"<svg>", "")])


def remember(addresses: list[str], request: Request) -> None:
    addresses.append(request.url)


@pytest.mark.skipif(CHROMIUM is None, reason="needs the system's chromium")
def test_in_a_browser_on_laptop_and_phone(tmp_path: Path) -> None:
    """Hostile names do nothing, every figure shows, nothing is loaded, and the page is no wider than the window."""
    file = tmp_path / "report.html"
    file.write_text(report(HOSTILE), encoding="utf-8")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            asked: list[str] = []
            page.on("request", partial(remember, asked))
            page.goto(file.as_uri())
            assert HOSTILE in page.inner_text("h1")
            assert page.title() == f"a run {HOSTILE}"
            assert page.evaluate("[...document.images].map(image => image.naturalWidth)") == [760, 60]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
            page.screenshot(path=str(tmp_path / f"report_{width}.png"), full_page=True)
        browser.close()
