"""A training tells its watchdog where it is, and hangs where a test makes it hang."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dmlscale.distributed.beats import PHASES, Beat
from dmlscale.distributed.world import World
from dmlscale.launch import build
from dmlscale.launch.recovery.watchdog import Watch
from dmlscale.launch.run.progress import entries_of
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
    step_banks, calls, stacks = Objective.step_banks, 0, ""

    def faults() -> list[str]:
        return [entry["fault"] for entry in entries_of(task.progress) if "fault" in entry]

    def hang(objective: Objective) -> None:
        nonlocal calls, stacks
        calls += 1
        if calls == 5:
            end = time.monotonic() + 60
            # Read here: on a busy machine a later step may be told as well, and its stacks be in their place.
            while not any("has been at step 4 (step) for" in fault for fault in faults()) or "in hang" not in stacks:
                assert time.monotonic() < end, (faults(), stacks)
                time.sleep(0.02)
                if (file := task.attempts / "000001.rank_0.stacks.txt").exists():
                    stacks = file.read_text()
        step_banks(objective)

    monkeypatch.setattr(Objective, "step_banks", hang)
    result = Training(task, World(), CPU).run()
    assert result["step"] == 8
    assert "in hang" in stacks


def test_where_the_set_up_fails_no_watch_is_left(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would say of a process that goes on, as a notebook does, that its start hangs."""

    def fail(*_: object) -> None:
        watches.extend(thread for thread in threading.enumerate() if thread.name == "heartbeats")
        raise ValueError("no such model")

    watches: list[threading.Thread] = []
    monkeypatch.setattr(build, "build_embedder", fail)
    task = task_of(config_file, "broken")
    with pytest.raises(ValueError, match="no such model"):
        Training(task, World(), CPU)
    assert watches
    for watch in watches:
        watch.join(30)
    assert not any(watch.is_alive() for watch in watches)
    assert not task.progress.exists()
