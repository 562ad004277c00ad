"""A training tells its watchdog where it is, and hangs where a test makes it hang."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dmlscale.distributed.beats import PHASES, Beat
from dmlscale.distributed.world import World
from dmlscale.launch.recovery.watchdog import Watch
from dmlscale.launch.worker import Training
from dmlscale.training.objective import Objective
from tests.integration.runs import CPU, task_of, work_on_rank


def test_the_place_of_a_training_is_told_and_only_grows(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge takes those at the lowest place for the ones that are waited for."""
    told: list[Beat] = []
    at = Watch.at

    def listen(watch: Watch, step: int, phase: str) -> None:
        told.append(Beat(step, phase))
        at(watch, step, phase)

    monkeypatch.setattr(Watch, "at", listen)
    work_on_rank(World(), task_of(config_file, "told", "train.eval_every=5", "train.checkpoint_every=5"))
    places = [beat.place for beat in told]
    assert places == sorted(places)
    assert len({beat.step for beat in told}) == 21
    assert {beat.phase for beat in told} == {"class means", "data", "step", "save", "evaluation", "end"} < set(PHASES)
    assert told[-1].phase == "end"


def test_a_step_that_takes_too_long_is_told_with_its_stacks(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(config_file, "hung", "resources.stall_timeout_s=0.5", "train.steps=8", "train.bank_start=random")
    step_banks, calls = Objective.step_banks, 0

    def hang(objective: Objective) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            time.sleep(2)
        step_banks(objective)

    monkeypatch.setattr(Objective, "step_banks", hang)
    result = Training(task, World(), CPU).run()
    assert result["step"] == 8
    said = [json.loads(line) for line in task.progress.read_text().splitlines()]
    faults = [entry["fault"] for entry in said if "fault" in entry]
    assert any("has been at step 4 (step) for" in fault for fault in faults)
    assert "in hang" in (task.attempts / "000001.rank_0.stacks.txt").read_text()
