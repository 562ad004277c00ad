"""Whether a run that was disturbed is the run that nothing disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.observe import MlflowStore
from tests.chaos.stored_tensors import read_tensors


def assert_same_steps(struck: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]], steps: int) -> None:
    """Whatever was repeated, each time with the same samples and bits; in each attempt no step left out."""
    expected = {entry["step"]: (entry["batch"], loss_of(entry)) for entry in alone}
    assert sorted(expected) == list(range(1, steps + 1))
    before: dict[str, Any] = {"attempt": 0, "step": 0}
    for entry in struck:
        assert (entry["batch"], loss_of(entry)) == expected[entry["step"]], entry
        assert entry["attempt"] >= before["attempt"], (before, entry)
        if entry["attempt"] == before["attempt"]:
            assert entry["step"] == before["step"] + 1, (before, entry)
        else:
            assert entry["step"] <= before["step"] + 1, (before, entry)
        before = entry
    assert before["step"] == steps


def loss_of(entry: dict[str, Any]) -> str:
    """As text, in which no bit is lost and NaN equals NaN."""
    return repr(float(entry["metrics"]["train/loss"]))


def assert_each_step_once(store: MlflowStore, alone: Sequence[dict[str, Any]]) -> None:
    """In MLflow there is one run, which has finished, with each step's loss once, in order."""
    assert [status for _, status in store.runs()] == ["FINISHED"]
    points = store.points("train/loss")
    assert [step for step, _ in points] == [entry["step"] for entry in alone]
    assert [repr(float(value)) for _, value in points] == [loss_of(entry) for entry in alone]
    assert len({step for step, _ in store.points("throughput/steps_per_s")}) == len(alone)


def assert_same_checkpoint(struck: Path, alone: Path) -> None:
    """The last checkpoints hold the same tensors, bit for bit."""
    theirs, ours = (read_tensors(max(folder.glob("step_*"))) for folder in (struck, alone))
    assert theirs.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)
