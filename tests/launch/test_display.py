"""What is printed of a run's progress file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmlscale.launch.display import ProgressTail


def test_a_skipped_step_has_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"throughput/steps_per_s": 2.0, "throughput/samples_per_s": 64.0, "data/wait_fraction": 0.1}
    entries = [
        {"step": 1, "steps": 3, "metrics": metrics | {"train/loss": 0.25}},
        {"step": 2, "steps": 3, "message": "hello"},
        {"step": 3, "steps": 3, "metrics": metrics},  # the last one is always printed
    ]
    file = tmp_path / "progress.jsonl"
    with ProgressTail(file):
        file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert capsys.readouterr().out.splitlines() == [
        "step 1/3  loss 0.2500  64 samples/s  10% waiting for data  ETA 1s",
        "hello",
        "step 3/3  skipped  64 samples/s  10% waiting for data  ETA 0s",
    ]
