"""Batches from mined neighbours: the same at any number of workers, and after a stop in the middle of a round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmlscale.cli import main
from dmlscale.distributed.world import World
from dmlscale.launch.task import Task
from dmlscale.launch.worker import Training
from tests.distributed.pool import GlooPool
from tests.integration.runs import CPU, batches, curve, task_of, work_on_rank

# A stop is seen at step 5: the third of the second round.
MINED = ("train.steps=12", "data.mine_every=3", "data.mine_candidates=5", "evaluation.raw_pixels=false")


def mined_task(config_file: Path, name: str, sampling: str = "hard_triplets", *overrides: str) -> Task:
    return task_of(config_file, name, f"data.sampling={sampling}", *MINED, *overrides)


def said(task: Task, text: str) -> list[str]:
    """The messages that hold a text."""
    entries = [json.loads(line) for line in task.progress.read_text().splitlines()]
    return [entry["message"] for entry in entries if text in entry.get("message", "")]


def stopped_task(gloo_pool: GlooPool, config_file: Path, num_ranks: int) -> Task:
    """A run that was stopped in the middle of its second round."""
    task = mined_task(config_file, "parts")
    task.stop_file.touch()
    assert gloo_pool.run(num_ranks, work_on_rank, task)[0]["step"] == 5
    task.stop_file.unlink()
    return task


@pytest.mark.parametrize("sampling", ["hard_triplets", "hard_neighbors"])
def test_curve_and_batches_do_not_depend_on_the_number_of_workers(
    gloo_pool: GlooPool, config_file: Path, sampling: str
) -> None:
    tasks = {num_ranks: mined_task(config_file, f"w{num_ranks}", sampling) for num_ranks in (1, 2, 3)}
    for num_ranks, task in tasks.items():
        gloo_pool.run(num_ranks, work_on_rank, task)
        assert len(said(task, "mined ")) == 4
        assert batches(task.folder) == batches(tasks[1].folder)
        assert curve(task.folder) == pytest.approx(curve(tasks[1].folder), rel=1e-6)
    assert len(set(batches(tasks[1].folder).values())) == 12


@pytest.mark.parametrize(("before", "after"), [(3, 2), (1, 4)])
def test_a_run_stopped_within_a_round_continues_at_another_number_of_workers(
    gloo_pool: GlooPool, config_file: Path, before: int, after: int
) -> None:
    whole = mined_task(config_file, "whole")
    gloo_pool.run(1, work_on_rank, whole)
    task = stopped_task(gloo_pool, config_file, before)
    assert len(said(task, "mined ")) == 2
    assert gloo_pool.run(after, work_on_rank, task)[0]["started_at_step"] == 5
    assert len(said(task, "mined ")) == 4  # the second round was read, not mined again
    assert batches(task.folder) == batches(whole.folder)
    assert curve(task.folder) == pytest.approx(curve(whole.folder), rel=1e-6)


def test_a_round_whose_table_is_gone_is_mined_again_and_said_so(gloo_pool: GlooPool, config_file: Path) -> None:
    task = stopped_task(gloo_pool, config_file, 2)
    for path in (Path(task.folder) / "mined").iterdir():
        path.write_bytes(b"damaged")
    gloo_pool.run(2, work_on_rank, task)
    assert "round_00000001.npz is gone or damaged" in said(task, "gone")[0]
    assert len(said(task, "mined ")) == 5
    assert len(batches(task.folder)) == 12


def mine_on_rank(world: World, task: Task) -> tuple[list[float], bool, int]:
    """Running statistics after ranks that differ in them have mined; whether the model still trains; mined samples."""
    training = Training(task, world, CPU)
    model = training._embedder.train()
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.fill_(1.0 + world.rank)
    table = training._miner(0, is_new=True)
    left = [float(buffer.mean()) for name, buffer in model.named_buffers() if "running" in name]
    return left, all(module.training for module in model.modules()), len(table.farthest_positive)


def test_all_ranks_embed_with_one_model(gloo_pool: GlooPool, config_file: Path) -> None:
    """With local batch norm, each rank would else embed its share with statistics of its own."""
    task = mined_task(config_file, "norm", "hard_triplets", "model.options={channels: [8, 8, 16, 16], stem_width: 8}")
    first, second = gloo_pool.run(2, mine_on_rank, task)
    assert first == second
    statistics, is_training, num_rows = first
    assert set(statistics) == {1.5}
    assert is_training
    assert num_rows > 0


def mine_with_nan(world: World, task: Task) -> None:
    training = Training(task, world, CPU)
    next(training._embedder.parameters()).data.fill_(float("nan"))
    training._miner(0, is_new=True)


def test_a_diverged_model_is_told_on_every_rank(gloo_pool: GlooPool, config_file: Path) -> None:
    """A rank that raised alone would leave the others waiting."""
    with pytest.raises(RuntimeError, match=r"DivergedError: .* lower the learning rates"):
        gloo_pool.run(2, mine_with_nan, mined_task(config_file, "nan"))
    gloo_pool.run(2, mine_on_rank, mined_task(config_file, "fine"))


def refused(capsys: pytest.CaptureFixture[str], config_file: Path, *overrides: str) -> str:
    assert main(["train", str(config_file), "--local", *overrides]) == 2
    said = capsys.readouterr()
    assert "mined" not in said.out
    return said.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.mine_candidates=900"], "mine_candidates=900, but the largest class has only"),
        (["data.mine_negatives=11"], "mine_negatives 11 are drawn from mine_candidates 10"),
        (["data.sampling=hard_neighbors", "data.samples_per_class=1"], "3 units of 4, fewer than num_streams=4"),
        (["data.samples_per_class=60"], "less than two batches of anchors"),
        (["data.sampling=hard"], "data.sampling"),
    ],
)
def test_what_cannot_be_mined_is_refused_before_training(
    capsys: pytest.CaptureFixture[str], config_file: Path, overrides: list[str], message: str
) -> None:
    assert message in refused(capsys, config_file, "data.sampling=hard_triplets", *overrides)


def test_a_continued_run_must_mine_alike(
    gloo_pool: GlooPool, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = stopped_task(gloo_pool, config_file, 1)
    again = ["run.name=parts", "--resume", *MINED]
    assert "data.sampling=hard_triplets, now it is classes" in refused(capsys, config_file, *again)
    again += ["data.sampling=hard_triplets", "data.mine_every=4"]
    assert "data.mine_every=3, now it is 4" in refused(capsys, config_file, *again)
    assert len(said(task, "mined ")) == 2
