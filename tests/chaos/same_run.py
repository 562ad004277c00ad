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


def loss_of(entry: dict[str, Any]) -> str | None:
    """As text, in which no bit is lost; a step that was skipped has none."""
    loss = entry["metrics"].get("train/loss")
    return None if loss is None else repr(loss)


def assert_each_step_once(store: MlflowStore, alone: Sequence[dict[str, Any]]) -> None:
    """In MLflow there is one run, which has finished, with each step once, in order, and with its loss."""
    assert [status for _, status in store.runs()] == ["FINISHED"]
    losses = [(entry["step"], loss_of(entry)) for entry in alone if loss_of(entry) is not None]
    assert [(step, repr(float(value))) for step, value in store.points("train/loss")] == losses
    assert [step for step, _ in store.points("train/lr_head")] == [entry["step"] for entry in alone]


def assert_same_checkpoint(struck: Path, alone: Path) -> None:
    """The last checkpoints hold the same tensors, bit for bit."""
    theirs, ours = (read_tensors(max(folder.glob("step_*"))) for folder in (struck, alone))
    assert theirs.keys() == ours.keys()
    for name in ours:
        np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)
