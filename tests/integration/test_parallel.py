"""A run in shards: the curve of a run without, from its class means to its evaluations, and checkpoints for both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dmlscale.distributed.world import World
from dmlscale.launch.worker import work
from tests.distributed.pool import GlooPool
from tests.integration.runs import CPU, curve, task_of, work_on_rank

# 64 samples a batch are not as many batches on every rank; a backbone rate at which rounding is not amplified.
SHORT = ("train.reproducible=false", "train.steps=8", "train.eval_every=3", "optim.backbone_lr=1e-4")
FSDP = ("train.parallel=fsdp", "train.reproducible=null", "train.activation_checkpointing=true")


def test_shards_follow_the_curve_of_one_worker(gloo_pool: GlooPool, config_file: Path) -> None:
    whole = task_of(config_file, "whole", *SHORT)
    wanted = gloo_pool.run(1, work_on_rank, whole)[0]["metrics"]
    for num_ranks, more in ((2, ("train.by_node=true",)), (3, ("train.micro_batch_size=5",))):
        task = task_of(config_file, f"w{num_ranks}", *SHORT, *FSDP, *more)
        found = gloo_pool.run(num_ranks, work_on_rank, task)[0]
        assert curve(task.folder) == pytest.approx(curve(whole.folder), rel=1e-4)
        assert found["metrics"] == pytest.approx(wanted, abs=0.02)
        again = work(replace(task, kind="evaluate", checkpoint=found["checkpoint"]), World(), CPU)
        both = found["metrics"].keys() & again["metrics"].keys()
        assert {key: again["metrics"][key] for key in both} == pytest.approx(
            {key: found["metrics"][key] for key in both}, abs=0.01
        )


@pytest.mark.parametrize(
    ("before", "first", "after", "then"), [(4, (), 2, FSDP), (3, FSDP, 2, FSDP), (2, FSDP, 3, ()), (3, FSDP, 1, FSDP)]
)
def test_a_run_goes_on_with_shards_or_without(
    gloo_pool: GlooPool, config_file: Path, before: int, first: tuple[str, ...], after: int, then: tuple[str, ...]
) -> None:
    whole = task_of(config_file, "whole", *SHORT)
    gloo_pool.run(1, work_on_rank, whole)
    task = task_of(config_file, "parts", *SHORT, *first)
    task.stop_file.touch()
    assert gloo_pool.run(before, work_on_rank, task)[0]["stopped"]
    task.stop_file.unlink()
    finished = gloo_pool.run(after, work_on_rank, task_of(config_file, "parts", *SHORT, *then))[0]
    assert finished["started_at_step"] == 5
    assert curve(task.folder) == pytest.approx(curve(whole.folder), rel=1e-4)


def test_ranks_mine_in_shards(gloo_pool: GlooPool, config_file: Path) -> None:
    mined = ("data.sampling=hard_triplets", "data.mine_every=3", "data.mine_candidates=5")
    whole = task_of(config_file, "whole", *SHORT, *mined)
    gloo_pool.run(1, work_on_rank, whole)
    task = task_of(config_file, "shards", *SHORT, *FSDP, *mined)
    gloo_pool.run(3, work_on_rank, task)
    found, wanted = curve(task.folder), curve(whole.folder)
    first = range(1, 4)
    assert [found[step] for step in first] == pytest.approx([wanted[step] for step in first], rel=1e-4)
    # Later rounds are mined with models that differ by rounding: of two neighbours as near, the other may be taken.
    assert found == pytest.approx(wanted, rel=1e-2)


def test_shards_in_half_precision_train_and_are_evaluated(gloo_pool: GlooPool, config_file: Path) -> None:
    curves = {}
    for name, more in (("whole", ()), ("shards", FSDP)):
        task = task_of(config_file, name, *SHORT, "train.precision=bf16", *more)
        result = gloo_pool.run(2, work_on_rank, task)[0]
        assert result["metrics"]["recall_at_1"] > 0.1
        curves[name] = curve(task.folder)
    assert curves["shards"] == pytest.approx(curves["whole"], rel=1e-2)
