"""A run that ends between a checkpoint and the evaluation of the same step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmlscale.distributed.world import World
from dmlscale.launch.run.saving import RunSaver
from dmlscale.launch.task import Task
from tests.distributed.pool import GlooPool
from tests.integration.runs import task_of, work_on_rank

OVERRIDES = ("train.steps=15", "train.eval_every=5", "train.bank_start=random", "evaluation.raw_pixels=false")


def evaluations(task: Task) -> list[tuple[int, float]]:
    entries = [json.loads(line) for line in task.progress.read_text().splitlines()]
    return [(entry["step"], entry["evaluation"]["recall_at_1"]) for entry in entries if "evaluation" in entry]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_was_not_evaluated_is_when_the_run_goes_on(
    gloo_pool: GlooPool, config_file: Path, tmp_path: Path, num_ranks: int
) -> None:
    whole, stopped = (task_of(config_file, name, *OVERRIDES) for name in ("whole", "stopped"))
    gloo_pool.run(num_ranks, work_on_rank, whole)
    stopped.stop_file.touch()
    gloo_pool.run(num_ranks, work_on_rank, stopped)
    assert evaluations(stopped) == []  # at step 5 it was saved, and gone
    stopped.stop_file.unlink()
    gloo_pool.run(num_ranks, work_on_rank, stopped)
    assert evaluations(stopped) == evaluations(whole)
    gloo_pool.run(num_ranks, work_on_rank, stopped)  # there is nothing left but the last one
    assert [step for step, _ in evaluations(stopped)] == [5, 10, 15, 15]


def test_a_kill_in_an_evaluation_does_not_lose_how_good_its_checkpoint_is(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(config_file, "killed", *OVERRIDES, "train.steps=10", "train.keep_best=2")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(RunSaver, "evaluated", killed)
        with pytest.raises(KeyboardInterrupt):
            work_on_rank(World(), task)
    work_on_rank(World(), task)
    checkpoints = Path(task.folder) / "checkpoints"
    assert [path.parent.name[-1] for path in sorted(checkpoints.glob("*/metrics.json"))] == ["5", "0"]
