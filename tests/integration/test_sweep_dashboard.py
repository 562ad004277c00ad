"""A sweep in a real browser: the pages that its user reviews it on, from a real server of MLflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dmlscale.tuning.outcomes import Outcome, ranked
from dmlscale.tuning.trial import read_outcomes
from tests.integration.browser import Visitor, needs_browser, visitor
from tests.integration.runs import BESIDE_OTHERS, write_config
from tests.tracking.conftest import MlflowServer

pytestmark = [*needs_browser, pytest.mark.timeout(900)]

METRIC = "recall_at_1"
MODEL = "glyphs-embedder"
SPACE = {
    "losses.name": {"choice": ["proxy_anchor", "triplet"]},
    "losses.margin": {"choice": [0.1, 0.3]},
    "optim.backbone_lr": {"choice": [4e-3], "when": {"losses.name": "triplet", "losses.margin": 0.1}},
    # One trial diverges. Another one is too slow to end before it is stopped, and no better than chance.
    "optim.head_lr": {"choice": [1e30], "when": {"losses.name": "proxy_anchor", "losses.margin": 0.3}},
    "model.embedding_dim": {"choice": [1], "when": {"losses.name": "triplet", "losses.margin": 0.3}},
    "data.samples_per_class": {"choice": [16], "when": {"losses.name": "triplet", "losses.margin": 0.3}},
}


@dataclass(frozen=True)
class Swept:
    """A sweep that is over.

    Args:
        address: of the dashboard.
        folder: of the sweep.
        output: what `tune` printed.
    """

    address: str
    folder: Path
    output: str

    @property
    def trials(self) -> list[Outcome]:
        """All of them, by name."""
        return read_outcomes(self.folder / "trials")

    @property
    def evaluated(self) -> list[Outcome]:
        """Those that did not fail, best first."""
        return ranked(self.trials, METRIC, "max")

    @property
    def stopped(self) -> Outcome:
        """The one that was stopped early."""
        (stopped,) = [trial for trial in self.trials if trial.status == "stopped"]
        return stopped

    def link(self, name: str) -> str:
        """A link that `tune` printed."""
        (found,) = re.findall(rf"^{name} +(http\S+)", self.output, flags=re.MULTILINE)
        return str(found)


@pytest.fixture(scope="module")
def swept(glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    folder = tmp_path_factory.mktemp("sweep")
    server = MlflowServer(folder)
    server.start()
    try:
        command = [sys.executable, "-m", "dmlscale.cli", "tune", str(write_sweep(folder, glyphs, server.uri))]
        environment = os.environ | BESIDE_OTHERS
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        swept = Swept(server.uri, folder / "runs" / "margins", done.stdout)
        statuses = [trial.status for trial in swept.trials]
        assert statuses == ["finished", "failed", "finished", "stopped"], done.stdout
        yield swept
    finally:
        server.kill()


def write_sweep(folder: Path, data: Path, uri: str) -> Path:
    """A sweep of four trials on two workers at a time."""
    base = write_config(
        folder / "small.yaml",
        data,
        folder,
        run={"folder": str(folder / "runs")},
        losses={"name": "triplet"},
        train={"steps": 60, "log_every": 10, "eval_every": 10, "checkpoint_every": 60},
        resources={"workers": 1, "device": "cpu", "cpus_per_worker": 0.5},
        tracking={"uri": uri, "experiment": "glyphs-sweep", "registered_model": MODEL},
    )
    settings = {"name": "margins", "searcher": "grid", "grace_steps": 20, "reduction_factor": 2}
    settings |= {"validation_classes": 0.34, "repeats": 2, "concurrent": 2}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"base": str(base), "sweep": settings, "space": SPACE}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def looks(swept: Swept, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with visitor(swept.address, tmp_path_factory.mktemp("pictures")) as found:
        yield found


@pytest.fixture
def on_sweep_page(looks: Visitor, swept: Swept) -> Visitor:
    """A visitor who followed the link that `tune` prints."""
    looks.open(swept.link("sweep"), "margins", "curves of all trials", "Child runs")
    return looks


def test_the_list_unfolds_to_the_trials_and_is_filtered_by_tags(looks: Visitor, swept: Swept) -> None:
    looks.open("#/experiments/1/runs?workflowType=machine_learning", "margins", "matching run")
    assert "trial-000" not in looks.text
    row = looks.page.locator(".ag-row").filter(has=looks.page.get_by_role("link", name="margins", exact=True))
    row.get_by_role("button").click()
    looks.sees(*(trial.trial for trial in swept.trials), "best-seed-0", "defaults-seed-1", MODEL)
    looks.keep("sweep_list")

    looks.filters("tags.`sweep.stage` = 'final'")
    looks.sees("best-seed-1")
    looks.no_longer_sees("trial-000")
    for status, trial in (("KILLED", swept.stopped.trial), ("FAILED", "trial-001")):
        looks.filters(f"tags.`sweep.stage` = 'trials' and attributes.status = '{status}'")
        looks.sees(trial)
        for other in swept.trials:
            if other.trial != trial:
                looks.no_longer_sees(other.trial)


def test_the_sweep_page_tells_the_verdict_and_leads_to_the_best_trial(on_sweep_page: Visitor, swept: Swept) -> None:
    on_sweep_page.sees("Finished", "best/validation/recall_at_1", "final/test/recall_at_1_best", "sweep.stage")
    verdict = next(line for line in swept.output.splitlines() if line.startswith("The best is"))
    on_sweep_page.sees(verdict, "the loss is nan", "behind the others (ASHA)")
    on_sweep_page.keep("sweep_page")
    on_sweep_page.page.get_by_text("Show more").click()
    on_sweep_page.keep("sweep_page_unfolded")
    best = swept.evaluated[0]
    rows = on_sweep_page.page.get_by_role("row").all_inner_texts()
    assert [row.split()[:2] for row in rows if re.match(r"\d\s+trial", row)] == [
        [str(rank), trial.trial] for rank, trial in enumerate(swept.evaluated, start=1)
    ]
    there = on_sweep_page.clicks(best.trial)
    there.sees("loss.name", "eval/validation/recall_at_1", "sweep.trial")
    assert best.run_id in there.page.url


def test_the_sweeps_figures_are_pictures(on_sweep_page: Visitor, swept: Swept) -> None:
    here = on_sweep_page.page.url.split("?")[0]
    for name in ("parallel_coordinates", "learning_curves", "importance", "final_comparison"):
        on_sweep_page.open(f"{here}/artifacts/figures/{name}.png", "best.yaml", "trials.csv")
        on_sweep_page.sees_picture(f"figures/{name}.png", swept.folder / f"{name}.png")
        on_sweep_page.keep(f"sweep_{name}")


def test_the_curves_of_all_trials_need_no_unfolding(on_sweep_page: Visitor, swept: Swept) -> None:
    there = on_sweep_page.clicks("curves of all trials")
    there.sees("4 matching runs", "eval/validation")
    drawn = there.curves(f"eval/validation/{METRIC}")
    there.keep("sweep_curves")
    assert drawn == {trial.trial: curve_of(trial) for trial in swept.evaluated}
    names = there.page.locator(".ag-row a").all_inner_texts()
    assert names == [trial.trial for trial in [*swept.evaluated, *failed(swept)]]  # sorted, best first


def test_trials_are_compared_over_what_was_searched(on_sweep_page: Visitor, swept: Swept) -> None:
    there = on_sweep_page.clicks("compare all trials")
    there.sees("Comparing 3 Runs", "Parallel Coordinates Plot", "Scatter Plot", "Box Plot", "Contour Plot")
    axes = there.parallel_axes()
    there.keep("sweep_compare")
    assert axes[:3] == ["data.samples_per_class", "loss.margin", "loss.name"]  # MLflow takes three of those that differ
    there.page.get_by_text("Show diff only").first.click()
    differing = there.differing_parameters()
    there.keep("sweep_compare_differences")
    assert differing == [
        "data.samples_per_class",
        "loss.margin",
        "loss.name",
        "model.embedding_dim",
        "optim.backbone_lr",
    ]
    assert swept.link("compare").split("/#")[1] in there.page.url


def test_a_stopped_trial_says_why_and_draws_its_curve(looks: Visitor, swept: Swept) -> None:
    trial = swept.stopped
    looks.open(f"#/experiments/1/runs/{trial.run_id}?workflowType=machine_learning", "Killed", "dmlscale.reason")
    looks.sees("behind the others (ASHA)", "loss.name", "triplet", "loss.margin", "model.embedding_dim", "glyphs/train")
    assert "loss.mining" not in looks.text  # what was not searched is in config.yaml
    looks.keep("trial_page")
    looks.open(looks.page.url.replace("?", "/model-metrics?"), "eval/validation", "train")
    assert looks.curves(f"eval/validation/{METRIC}") == {trial.trial: curve_of(trial)}
    looks.keep("trial_curves")


def test_the_registered_model_tells_what_goes_in_and_out(on_sweep_page: Visitor) -> None:
    there = on_sweep_page.clicks("registered model")
    there.sees(MODEL, "Version 1", "resnet10t", METRIC)
    there.keep("model")
    there = there.clicks("Version 1")
    there.sees("Source Run", "best-seed-0", "dmlscale.content_hash", METRIC)
    for part in ("Inputs (1)", "Outputs (1)"):
        there.page.get_by_text(part).click()
    there.sees("binary", "float32, shape: [-1,16]")
    there.keep("model_version")


def curve_of(trial: Outcome) -> list[tuple[int, float]]:
    """(step, metric) of each evaluation."""
    return [(step, metrics[METRIC]) for step, metrics in trial.curve]


def failed(swept: Swept) -> list[Outcome]:
    """Trials without a result."""
    return [trial for trial in swept.trials if trial.status == "failed"]
