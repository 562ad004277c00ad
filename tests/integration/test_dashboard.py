"""The run in a real browser: MLflow's dashboard, opened with the command that training prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.browser import needs_browser, visitor
from tests.tracking.conftest import free_port

pytestmark = needs_browser


@pytest.fixture
def trained(config_file: Path, tmp_path: Path) -> tuple[dict[str, str], str]:
    """The result of a small training, and what it printed."""
    figures = tmp_path / "figures.json"
    options = ["evaluation.report=true", "--local", "--json", str(figures)]
    command = [sys.executable, "-m", "dmlscale.cli", "train", str(config_file), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    return json.loads(figures.read_text()), done.stdout


@pytest.fixture
def address(trained: tuple[dict[str, str], str]) -> Iterator[str]:
    """Where the dashboard answers."""
    port = free_port()
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


def test_the_run_page_shows_metrics_system_and_gallery(
    trained: tuple[dict[str, str], str], address: str, tmp_path: Path
) -> None:
    run = trained[0]["tracking_run"]
    with visitor(address, tmp_path) as looks:
        looks.open(f"#/runs/{run}", "Finished", "glyphs/train", "eval/test/recall_at_1", "train/loss", "loss.0.name")
        looks.keep("run_page")
        here = looks.page.url.split("?")[0]
        looks.open(f"{here}/model-metrics", "eval/test", "throughput")
        assert [step for step, _ in looks.curves("train/loss")["small"]] == list(range(1, 21))
        looks.keep("run_metrics")
        looks.open(f"{here}/system-metrics", "cpu_utilization_percentage")
        looks.keep("run_system")
        looks.open(f"{here}/artifacts/figures/retrieval_gallery.png", "config.yaml")
        looks.sees_picture(
            "figures/retrieval_gallery.png", tmp_path / "runs" / "small" / "report" / "retrieval_gallery.png"
        )
        looks.keep("run_gallery")
