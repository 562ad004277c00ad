from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dmlscale.config.load import load_config
from dmlscale.tuning.outcomes import Outcome
from dmlscale.tuning.results import compare
from dmlscale.tuning.trial import (
    END_FILE,
    TRIAL_FILE,
    Place,
    end_trial,
    open_trial,
    read_outcome,
    read_outcomes,
    write_json,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trial that was evaluated at the steps 10 and 20, and went back to 10 after a kill."""
    folder = tmp_path / "trials" / "trial-000"
    (folder / "checkpoints").mkdir(parents=True)
    write_json(folder / TRIAL_FILE, {"drawn": {"losses.margin": 0.1}, "run_id": "abc"})
    entries: list[dict[str, Any]] = [
        {"step": 10, "steps": 40, "evaluation": {"recall_at_1": 0.1}, "cost_s": 3.0},
        {"step": 10, "steps": 40, "checkpoint": "step_00000010", "cost_s": 3.5},
        {"step": 20, "steps": 40, "evaluation": {"recall_at_1": 0.2}, "cost_s": 7.0},
        {"step": 20, "steps": 40, "evaluation": {"recall_at_1": 0.21}, "cost_s": 7.5},
        {"step": 20, "steps": 40, "metrics": {"train/loss": 1.0}},
    ]
    (folder / "progress.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


def test_a_folder_tells_what_became_of_its_trial(folder: Path) -> None:
    outcome = read_outcome(folder)
    assert (outcome.trial, outcome.status, outcome.run_id) == ("trial-000", "running", "abc")
    assert [(step, metrics["recall_at_1"]) for step, metrics in outcome.curve] == [(10, 0.1), (20, 0.21)]
    assert outcome.drawn == {"losses.margin": 0.1}
    assert outcome.seconds == 7.5
    end_trial(folder, "stopped", "stopped by ASHA, at step 20", 9.0)
    outcome = read_outcome(folder)
    assert (outcome.status, outcome.reason, outcome.seconds) == ("stopped", "stopped by ASHA, at step 20", 9.0)


def test_a_stage_is_the_folders_that_hold_trials(folder: Path) -> None:
    (folder.parent / "tune").mkdir()
    assert [outcome.trial for outcome in read_outcomes(folder.parent)] == ["trial-000"]


def test_an_end_is_written_at_once_or_not_at_all(folder: Path) -> None:
    end_trial(folder, "failed", "why", 1.0)
    assert not list(folder.glob(".*partial*"))
    assert json.loads((folder / END_FILE).read_text())["status"] == "failed"


def final(settings: str, seed: int, value: float, status: Any = "finished") -> Outcome:
    curve = ((40, {"recall_at_1": value}),)
    drawn: dict[str, Any] = {"settings": settings, "run.seed": seed}
    return Outcome(trial=f"{settings}-{seed}", status=status, drawn=drawn, curve=curve)


def test_the_comparison_is_of_runs_that_finished_with_a_number() -> None:
    runs = [final("best", 0, 0.5), final("best", 1, 0.6), final("defaults", 0, 0.4), final("defaults", 1, math.nan)]
    compared = compare(runs, "recall_at_1", "max")
    assert compared is not None
    assert (compared.best.n, compared.defaults.n) == (2, 1)
    assert "one seed cannot tell" in compared.verdict
    assert compare([final("best", 0, 0.5), final("defaults", 0, 0.4, "failed")], "recall_at_1", "max") is None


def test_a_worse_best_is_called_so() -> None:
    runs = [
        final(which, seed, value + seed / 1000)
        for which, value in (("best", 0.4), ("defaults", 0.5))
        for seed in range(3)
    ]
    compared = compare(runs, "recall_at_1", "max")
    assert compared is not None
    assert "worse" in compared.verdict


def test_trials_of_one_name_keep_their_checkpoints_apart(tmp_path: Path) -> None:
    values = load_config("configs/quickstart.yaml", [f"train.checkpoint_folder={tmp_path / 'kept'}"]).model_dump()
    kept = []
    for sweep in ("first", "second"):
        place = Place(str(tmp_path / sweep / "search"), "", "", "", "search", {})
        config, _ = open_trial("trial-000", values, place)
        kept.append(config.train.checkpoint_folder)
    assert kept == [str(tmp_path / "kept" / sweep / "search") for sweep in ("first", "second")]
