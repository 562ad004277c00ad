"""The real thing: Ray Train workers, each its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.pool import GlooPool
from tests.integration.runs import BESIDE_OTHERS, batches, curve, task_of, work_on_rank

SHARED = ("resources.cpus_per_worker=0.5", "evaluation.raw_pixels=false")


def start(config_file: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dmlscale.cli", "train", str(config_file), *SHARED, *arguments]
    environment = os.environ | BESIDE_OTHERS
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_two_ray_workers_follow_the_curve_of_one_process(
    gloo_pool: GlooPool, config_file: Path, tmp_path: Path
) -> None:
    alone = task_of(config_file, "alone")
    reference = gloo_pool.run(1, work_on_rank, alone)[0]
    figures = tmp_path / "figures.json"
    process = start(config_file, "run.name=ray", "resources.workers=2", "--json", str(figures))
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    folder = tmp_path / "runs" / "ray"
    assert batches(folder) == batches(alone.folder)
    assert curve(folder) == pytest.approx(curve(alone.folder), rel=1e-4)
    measured = json.loads(figures.read_text())["metrics"]["recall_at_1"]
    assert measured == pytest.approx(reference["metrics"]["recall_at_1"], abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_command_saves_the_run(config_file: Path, tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "runs" / "stopped"
    arguments = ("run.name=stopped", "resources.workers=2", "train.steps=3000", "train.checkpoint_every=3000")
    process = start(config_file, *arguments)
    deadline = time.monotonic() + 240
    while not (folder / "progress.jsonl").exists() or len(batches(folder)) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 75, output
    assert "to go on, the same command with\n    run.name=stopped\n" in output
    assert len(list(folder.glob("checkpoints/step_*"))) == 1
