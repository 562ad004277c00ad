"""The same run at W = 1, 2, 3, and continued at another W: one curve."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.pool import GlooPool
from tests.integration.runs import batches, curve, steps_of, task_of, work_on_rank


def test_curve_and_batches_do_not_depend_on_the_number_of_workers(gloo_pool: GlooPool, config_file: Path) -> None:
    runs = {}
    for num_ranks in (1, 2, 3):
        task = task_of(config_file, f"w{num_ranks}")
        results = gloo_pool.run(num_ranks, work_on_rank, task)
        assert all(result["metrics"] == results[0]["metrics"] for result in results)
        runs[num_ranks] = (task.folder, results[0])
    reference = curve(runs[1][0])
    assert len(reference) == 20
    for num_ranks in (2, 3):
        folder, result = runs[num_ranks]
        assert batches(folder) == batches(runs[1][0])
        assert curve(folder) == pytest.approx(reference, rel=1e-6)
        assert result["metrics"]["recall_at_1"] == pytest.approx(runs[1][1]["metrics"]["recall_at_1"], abs=0.01)


def test_plain_data_parallelism_follows_the_same_curve(gloo_pool: GlooPool, config_file: Path) -> None:
    """Without exact sums the curves part by rounding, which training amplifies: the first steps must agree."""
    curves = []
    for num_ranks in (1, 2):
        task = task_of(config_file, f"ddp{num_ranks}", "train.reproducible=false", "train.steps=4")
        gloo_pool.run(num_ranks, work_on_rank, task)
        curves.append(curve(task.folder))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 4), (4, 1)])
def test_a_stopped_run_continues_at_another_number_of_workers(
    gloo_pool: GlooPool, config_file: Path, before: int, after: int
) -> None:
    whole = task_of(config_file, "whole")
    gloo_pool.run(1, work_on_rank, whole)

    task = task_of(config_file, "parts")
    task.stop_file.touch()
    stopped = gloo_pool.run(before, work_on_rank, task)[0]
    assert stopped["stopped"]
    assert 0 < stopped["step"] < 20
    task.stop_file.unlink()
    finished = gloo_pool.run(after, work_on_rank, task)[0]
    assert finished["started_at_step"] == stopped["step"]
    assert not finished["stopped"]
    assert batches(task.folder) == batches(whole.folder)
    assert curve(task.folder) == pytest.approx(curve(whole.folder), rel=1e-6)


def test_log_names_the_terms_and_groups(gloo_pool: GlooPool, config_file: Path) -> None:
    task = task_of(config_file, "log", "train.steps=2")
    gloo_pool.run(2, work_on_rank, task)
    metrics = steps_of(task.folder)[2]["metrics"]
    assert {
        "train/loss",
        "train/triplet",
        "train/proxy_anchor",
        "train/lr_backbone",
        "train/lr_head",
        "train/lr_bank",
        "throughput/samples_per_s",
        "data/wait_fraction",
    } <= set(metrics)
