"""A run whose newest checkpoints were damaged goes on from the one before, at another W, on the same curve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmlscale.training import checkpoint
from tests.distributed.pool import GlooPool
from tests.integration.runs import batches, curve, task_of, work_on_rank


def damage(path: Path, number: int) -> None:
    """One bit of one of its files."""
    file = sorted(path.glob("*.safetensors"))[number]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def faults(folder: str) -> list[str]:
    lines = Path(folder, "progress.jsonl").read_text().splitlines()
    return [entry["fault"] for entry in map(json.loads, lines) if "fault" in entry]


def test_it_goes_back_and_follows_the_same_curve(gloo_pool: GlooPool, config_file: Path) -> None:
    whole = task_of(config_file, "whole")
    gloo_pool.run(1, work_on_rank, whole)
    task = task_of(config_file, "damaged", "train.keep_checkpoints=3")
    assert gloo_pool.run(2, work_on_rank, task)[0]["step"] == 20
    *_, middle, last = paths = checkpoint.list_checkpoints(Path(task.folder) / "checkpoints")
    assert [path.name for path in paths] == ["step_00000008", "step_00000016", "step_00000020"]
    damage(middle, 0)
    damage(last, 1)
    finished = gloo_pool.run(3, work_on_rank, task)[0]
    assert (finished["started_at_step"], finished["step"]) == (8, 20)
    assert [fault.split(" (")[0] for fault in faults(task.folder)] == [
        "checkpoint step_00000020 is damaged",
        "checkpoint step_00000016 is damaged",
    ]
    assert batches(task.folder) == batches(whole.folder)
    assert curve(task.folder) == pytest.approx(curve(whole.folder), rel=1e-6)
    for path in checkpoint.list_checkpoints(Path(task.folder) / "checkpoints"):
        assert checkpoint.verify(path) == []  # what was damaged has been written again


def test_it_does_not_begin_again_unasked(gloo_pool: GlooPool, config_file: Path) -> None:
    task = task_of(config_file, "hopeless", "train.steps=2")
    gloo_pool.run(2, work_on_rank, task)
    (path,) = checkpoint.list_checkpoints(Path(task.folder) / "checkpoints")
    damage(path, 1)
    with pytest.raises(
        RuntimeError, match=r"CheckpointError: no checkpoint in .* is whole: .*step_00000002 is damaged"
    ):
        gloo_pool.run(2, work_on_rank, task)
    assert path.is_dir()
