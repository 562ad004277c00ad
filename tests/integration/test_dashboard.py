"""The run in a real browser: MLflow's dashboard, opened with the command that training prints."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs the system's chromium")]

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def trained(config_file: Path, tmp_path: Path) -> tuple[dict[str, str], str]:
    """The result of a small training, and what it printed."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "dmlscale.cli", "train", str(config_file), "--local", "--json", str(figures)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    return json.loads(figures.read_text()), done.stdout


@pytest.fixture
def address(trained: tuple[dict[str, str], str]) -> Iterator[str]:
    """Where the dashboard answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    printed = re.search(r"dashboard\s+(.*mlflow ui .*) --port 5000", trained[1])
    assert printed is not None
    command = printed[1].replace("mlflow ui", f"{sys.executable} -m mlflow ui")
    server = subprocess.Popen(
        f"exec env {command} --port {port}", shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


def shows(page: Page, *texts: str) -> None:
    """Waits until the page shows every text."""
    for text in texts:
        page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, timeout=45_000)


def test_the_run_page_shows_metrics_system_and_gallery(
    trained: tuple[dict[str, str], str], address: str, tmp_path: Path
) -> None:
    run = trained[0]["tracking_run"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.goto(f"{address}/#/runs/{run}")
        shows(page, "Finished", "glyphs/train", "eval/test/recall_at_1", "train/loss", "loss.0.name")
        here = page.url.split("?")[0]
        page.goto(f"{here}/model-metrics")
        shows(page, "eval/test", "recall_at_1", "throughput")
        page.goto(f"{here}/system-metrics")
        shows(page, "cpu_utilization_percentage")
        page.goto(f"{here}/artifacts/figures/retrieval_gallery.png")
        shows(page, "retrieval_gallery.png")
        page.wait_for_function(
            "() => [...document.images].some(picture => picture.naturalHeight > 300)", timeout=45_000
        )
        page.screenshot(path=str(tmp_path / "gallery.png"))
        browser.close()
