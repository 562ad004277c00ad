"""A sweep as its user runs it: Ray Tune over Ray Train, killed in the middle and continued."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow.tracking import MlflowClient

from dmlscale.config.load import load_config
from dmlscale.tuning.trial import read_outcomes
from tests.integration.runs import BESIDE_OTHERS, curve, write_config
from tests.tracking.conftest import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def write_sweep(folder: Path, data: Path, **parts: Any) -> Path:
    """A sweep over a small config: eight trials, of which those with a huge learning rate diverge, the first too."""
    base = write_config(
        folder / "small.yaml",
        data,
        folder,
        run={"folder": str(folder / "runs")},
        losses={"name": "triplet"},
        # A trial does some ten steps more while it is being stopped: 40 are left after the last look, at step 40.
        train={"steps": 80, "log_every": 5, "eval_every": 5, "checkpoint_every": 5},
        resources={"workers": 1, "device": "cpu", "cpus_per_worker": 0.5},
    )
    values = {
        "base": str(base),
        "sweep": {
            "searcher": "grid",
            "grace_steps": 5,
            "reduction_factor": 2,
            "validation_classes": 0.34,
            "repeats": 2,
            "concurrent": 2,
        },
        "space": {
            "losses.name": {"choice": ["triplet", "proxy_anchor"]},
            "losses.margin": {"choice": [0.1, 0.3]},
            "optim.head_lr": {"choice": [1e30, 2e-3]},
        },
    }
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(values | parts))
    return path


def start(sweep: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dmlscale.cli", "tune", str(sweep), "sweep.name=s", *arguments]
    environment = os.environ | BESIDE_OTHERS
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def ended(folder: Path, *statuses: str) -> dict[str, str]:
    """Trial -> what it has logged, of those that ended so."""
    ends = folder.glob("trials/*/end.json")
    done = [end.parent for end in ends if json.loads(end.read_text())["status"] in statuses]
    logged = {path.name: path / "progress.jsonl" for path in done}  # which a trial that failed early has not
    return {name: path.read_text() if path.exists() else "" for name, path in logged.items()}


def children(folder: Path) -> dict[str, Any]:
    """MLflow's runs of the sweep by trial."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tests"]
    runs = client.search_runs([experiment.experiment_id])
    return {run.data.tags.get("sweep.trial", "parent"): run for run in runs}


def wait_for_ends(process: subprocess.Popen[str], folder: Path, count: int, *statuses: str) -> None:
    deadline = time.monotonic() + 300
    while len(ended(folder, *statuses)) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_for_end_of(processes: list[psutil.Process]) -> None:
    deadline = time.monotonic() + 120
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, process
                time.sleep(0.05)


def test_a_killed_sweep_goes_on_and_repeats_no_finished_trial(glyphs: Path, tmp_path: Path) -> None:
    sweep, folder = write_sweep(tmp_path, glyphs), tmp_path / "runs" / "s"
    process = start(sweep)
    wait_for_ends(process, folder, 1, "finished")
    cluster = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    wait_for_end_of(cluster)  # which ends with the command; until then a trial may write
    before = ended(folder, "finished", "stopped")
    process = start(sweep, "--resume")
    wait_for_ends(process, folder, 5, "finished", "stopped", "failed")
    process.terminate()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 75, output
    assert "sweep.name=s --resume" in output
    assert {run.info.status for run in children(tmp_path).values()} <= {"FINISHED", "FAILED", "KILLED"}
    before |= ended(folder, "finished", "stopped")

    refused = start(sweep)
    assert "holds a sweep already: add --resume" in refused.communicate(timeout=100)[0]
    assert refused.returncode == 2

    output = start(sweep, "--resume").communicate(timeout=600)[0]
    assert before.items() <= ended(folder, "finished", "stopped").items()
    outcomes = {outcome.trial: outcome for outcome in read_outcomes(folder / "trials")}
    assert len(outcomes) == 8, output
    diverged = [name for name, outcome in outcomes.items() if outcome.drawn["optim.head_lr"] == 1e30]
    assert {outcomes[name].status for name in diverged} == {"failed"}
    assert all("lower the learning rate" in outcomes[name].reason for name in diverged)
    others = [outcome for name, outcome in outcomes.items() if name not in diverged]
    assert {outcome.status for outcome in others} <= {"finished", "stopped"}
    assert all(outcome.steps < 80 for outcome in others if outcome.status == "stopped")
    for outcome in others:
        steps = sorted(curve(outcome.folder))  # a trial goes on for a moment while it is being stopped
        assert steps == list(range(5, steps[-1] + 1, 5)), outcome.trial

    runs = children(tmp_path)
    expected = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    for name, outcome in outcomes.items():
        run = runs[name]
        assert run.info.status == expected[outcome.status], name
        assert run.data.tags["mlflow.parentRunId"] == runs["parent"].info.run_id
        assert run.data.params["loss.name"] == outcome.drawn["losses.name"]
        if outcome.status != "finished":
            assert run.data.tags["dmlscale.reason"] == outcome.reason
    assert runs["parent"].info.status == "FINISHED"
    assert "compare all trials" in runs["parent"].data.tags["mlflow.note.content"]

    assert re.search(r"The best is (better|worse|neither)", output), output
    best = load_config(folder / "best.yaml")
    assert best.data.eval_split == "test"
    assert best.data.validation_classes == 0
    tested = [outcome for outcome in read_outcomes(folder / "final") if outcome.status == "finished"]
    assert len(tested) == 4
    assert all(len(outcome.curve) == 1 for outcome in tested)  # the test split, once


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """For Ray's sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield folder


def test_a_cluster_without_a_dashboard_is_refused(glyphs: Path, tmp_path: Path, ray_folder: str) -> None:
    port = free_port()
    head = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}", "--num-cpus=2"),
        *("--include-dashboard=false", "--disable-usage-stats", "--block", "--temp-dir", ray_folder),
    ]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    cluster = subprocess.Popen(head, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in cluster.stdout or ():
            if "Ray runtime started" in line:
                break
        sweep = write_sweep(tmp_path, glyphs)
        (tmp_path / "mlflow.db").unlink()  # nobody has one before the first sweep
        environment |= {"RAY_ADDRESS": f"127.0.0.1:{port}"}
        command = [sys.executable, "-m", "dmlscale.cli", "tune", str(sweep), "sweep.name=s"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=150, check=False)
        assert "the Ray cluster has no dashboard that answers" in done.stderr, done.stdout + done.stderr
        assert done.returncode == 2
        assert not (tmp_path / "mlflow.db").exists()
    finally:
        cluster.terminate()
        cluster.communicate(timeout=60)
