from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from dmlscale.config.load import check_config
from dmlscale.launch.errors import LaunchError
from dmlscale.tuning.config import SweepConfig
from dmlscale.tuning.early_stop import Plateau, RememberingASHA, grace_steps
from dmlscale.tuning.trial import TRIAL_FILE, end_trial, write_json


def asha(folder: Path, steps: int, grace: int, factor: float) -> RememberingASHA:
    options: dict[str, Any] = {"time_attr": "step", "metric": "recall", "mode": "max", "stop_last_trials": False}
    return RememberingASHA(str(folder), max_t=steps - 1, grace_period=grace, reduction_factor=factor, **options)


def report(scheduler: RememberingASHA, trial: Any, step: int, value: float) -> str:
    return scheduler.on_trial_result(SimpleNamespace(), trial, {"step": step, "recall": value})


@pytest.mark.parametrize(("steps", "grace", "factor"), [(20, 5, 2), (400, 50, 2), (450, 50, 3)])
def test_no_trial_is_stopped_at_its_last_step(tmp_path: Path, steps: int, grace: int, factor: float) -> None:
    scheduler = asha(tmp_path, steps, grace, factor)
    first, second = SimpleNamespace(trial_id="a"), SimpleNamespace(trial_id="b")
    for trial in (first, second):
        scheduler.on_trial_add(SimpleNamespace(), trial)
    for step in range(grace, steps + 1, grace):
        assert report(scheduler, first, step, 0.5) == TrialScheduler.CONTINUE
    for step in range(grace, steps, grace):
        assert report(scheduler, second, step, 0.6) == TrialScheduler.CONTINUE
    assert report(scheduler, second, steps, 0.1) == TrialScheduler.CONTINUE


def test_a_trial_behind_the_others_is_stopped_also_by_those_of_an_earlier_process(tmp_path: Path) -> None:
    for number in range(3):
        folder = tmp_path / f"trial-{number}"
        folder.mkdir()
        write_json(folder / TRIAL_FILE, {"drawn": {}, "run_id": ""})
        entry = {"step": 10, "evaluation": {"recall": 0.5 + number / 100}, "cost_s": 1.0}
        (folder / "progress.jsonl").write_text(json.dumps(entry) + "\n")
        end_trial(folder, "finished", "", 1.0)
    late = SimpleNamespace(trial_id="late")
    alone = asha(tmp_path / "absent", 100, 10, 3)
    alone.on_trial_add(SimpleNamespace(), late)
    assert report(alone, late, 10, 0.4) == TrialScheduler.CONTINUE
    resumed = asha(tmp_path, 100, 10, 3)
    resumed.on_trial_add(SimpleNamespace(), late)
    assert report(resumed, late, 10, 0.4) == TrialScheduler.STOP


def test_a_trial_that_stands_still_is_stopped_but_not_at_its_end() -> None:
    plateau = Plateau(steps=50, metric="recall", std=0.01, num_results=3, grace_period=3)
    told = [plateau("a", {"step": step, "recall": 0.5}) for step in (10, 20, 30)]
    assert told == [False, False, True]
    assert "a" in Plateau.stopped
    assert not [plateau("b", {"step": step, "recall": 0.5}) for step in (30, 40, 50)][-1]
    assert "b" not in Plateau.stopped


def test_asha_needs_evaluations_before_the_end() -> None:
    values: dict[str, Any] = {"data": {"path": "x"}, "losses": {"name": "triplet"}, "train": {"steps": 100}}
    with pytest.raises(LaunchError, match=r"train.eval_every=0 must be above 0"):
        grace_steps(check_config(values, "x"), SweepConfig())
    values["train"]["eval_every"] = 20
    assert grace_steps(check_config(values, "x"), SweepConfig()) == 20
    with pytest.raises(LaunchError, match=r"first rung \(sweep.grace_steps, now 100\) before train.steps=100"):
        grace_steps(check_config(values, "x"), SweepConfig(grace_steps=100))
