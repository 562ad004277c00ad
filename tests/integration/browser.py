"""A headless browser on MLflow's dashboard: opening pages, waiting for what they show, keeping pictures of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, TimeoutError, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs the system's chromium")]

PATIENCE_MS = 120_000  # a page takes a second on a machine that has nothing else to do
_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Charts are plotly's, which keeps on the element what it drew.
_CURVES = """metric => {
    const charts = [...document.querySelectorAll('.js-plotly-plot')];
    if (charts.length !== 1 || !document.body.innerText.includes(metric)) return null;
    const lines = (charts[0].data || []).filter(line => line.x?.length);
    const points = line => [...line.x].map((step, n) => [step, line.y[n]]);
    return lines.length && Object.fromEntries(lines.map(line => [line.name, points(line)]));
}"""
_AXES = """() => {
    const charts = [...document.querySelectorAll('.js-plotly-plot')].flatMap(chart => chart.data || []);
    return charts.find(chart => chart.type === 'parcoords')?.dimensions.map(axis => axis.label);
}"""


@dataclass(frozen=True)
class Visitor:
    """Somebody who looks at the dashboard.

    Args:
        page: of the browser.
        address: of the dashboard.
        pictures: folder for screenshots.
    """

    page: Page
    address: str
    pictures: Path

    def open(self, path: str, *texts: str) -> None:
        """Opens a page, without the assistant that covers a quarter of it, and waits until it shows the texts.

        Args:
            path: from the dashboard's address on, ``#/...``; or a whole address.
            texts: see `sees`.
        """
        self.page.goto("about:blank")  # or what the last page showed may stay, where addresses differ after the # alone
        self.page.goto(path if path.startswith("http") else f"{self.address}/{path}")
        self.sees(*texts)
        for button in self.page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]').all():
            button.click()

    def sees(self, *texts: str) -> None:
        """Waits until the page shows every text.

        Raises:
            AssertionError: it does not; with what it shows instead.
        """
        for text in texts:
            try:
                shown = "text => document.body.innerText.includes(text)"
                self.page.wait_for_function(shown, arg=text)
            except TimeoutError:
                self.keep("missing")
                raise AssertionError(f"{self.page.url} does not show {text!r}:\n{self.text}") from None

    def sees_picture(self, name: str, file: Path) -> None:
        """Waits until the page of an artifact shows it as a picture.

        Args:
            name: with its folder.
            file: that it was sent from; the picture has its size.
        """
        self.sees(name, "Path: ")
        with Image.open(file) as picture:
            size = list(picture.size)
        shown = (
            "size => [...document.images].some(picture => "
            "picture.naturalWidth === size[0] && picture.naturalHeight === size[1])"
        )
        self.page.wait_for_function(shown, arg=size)

    def no_longer_sees(self, text: str) -> None:
        """Waits until the page does not show the text."""
        gone = "text => !document.body.innerText.includes(text)"
        self.page.wait_for_function(gone, arg=text)

    def filters(self, condition: str) -> None:
        """Types a condition into the search box above the list of runs."""
        box = self.page.get_by_placeholder("metrics.rmse")
        box.fill(condition)
        box.press("Enter")

    def curves(self, metric: str) -> dict[str, list[tuple[int, float]]]:
        """What the chart of a metric draws: run -> (step, value), of the runs that have any.

        Args:
            metric: its full name. It is searched for: charts further down a page are drawn only when they are
                scrolled to.
        """
        self.page.get_by_placeholder("Search metric charts").fill(metric)
        found = self.page.wait_for_function(_CURVES, arg=metric).json_value()
        return {name: [(step, value) for step, value in points] for name, points in found.items()}

    def parallel_axes(self) -> list[str]:
        """Names of the axes of the chart of parallel coordinates."""
        axes: list[str] = self.page.wait_for_function(_AXES).json_value()
        return axes

    def differing_parameters(self) -> list[str]:
        """Those that the page of a comparison lists."""
        section = self.page.locator("table").filter(has_text="loss.name").first
        section.scroll_into_view_if_needed()
        return [row.split()[0] for row in section.get_by_role("row").all_inner_texts()]

    def clicks(self, name: str) -> Visitor:
        """Follows the link of this name; returns who is on the page that it leads to, maybe in a new tab."""
        link = self.page.get_by_role("link", name=name, exact=True).first
        if link.get_attribute("target") != "_blank":
            link.click()
            return self
        with self.page.context.expect_page() as opened:
            link.click()
        return replace(self, page=opened.value)

    def keep(self, name: str) -> None:
        """Takes a screenshot."""
        self.page.screenshot(path=str(self.pictures / f"{name}.png"))

    @property
    def text(self) -> str:
        """All that the page shows."""
        return self.page.inner_text("body")


@contextmanager
def visitor(address: str, folder: Path) -> Iterator[Visitor]:
    """A visitor who comes for the first time.

    Args:
        address: of the dashboard.
        folder: for screenshots, unless DMLSCALE_SCREENSHOTS names one.
    """
    pictures = Path(os.environ.get("DMLSCALE_SCREENSHOTS") or folder)
    pictures.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS)
        context = browser.new_context(viewport={"width": 1500, "height": 1100})
        context.set_default_timeout(PATIENCE_MS)
        yield Visitor(context.new_page(), address, pictures)
        browser.close()
