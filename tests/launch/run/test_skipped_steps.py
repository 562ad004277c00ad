"""A run with a sample that makes its steps not finite: told, written down, counted over resumes, and ended in time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmlscale.data.index import Index
from dmlscale.data.packing.pack import ensure_packed
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources.arrays import Arrays
from dmlscale.launch.run.skipped_steps import SkippedSteps
from dmlscale.launch.task import Task
from dmlscale.training.loop import DivergedError
from dmlscale.training.nonfinite import SkippedStep
from tests.distributed.pool import GlooPool
from tests.integration.runs import batches, steps_of, task_of, work_on_rank, write_config

CLASSES, PER_CLASS, FEATURES = 12, 8, 6
DATA = [
    "data.input=array",
    "data.classes_per_batch=8",
    "data.samples_per_class=2",
    "data.transform=as_is",
    "data.eval_transform=as_is",
]
BAD_ROW = 5  # of the array: finite, but the network's sums of it are not


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of 12 classes to train on and 12 to test, one of them too large."""
    folder = tmp_path_factory.mktemp("vectors")
    labels = np.arange(2 * CLASSES).repeat(PER_CLASS)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(labels), FEATURES)) + rng.normal(size=(2 * CLASSES, FEATURES))[labels]
    vectors[BAD_ROW] = 3e38
    splits = np.where(labels < CLASSES, "train", "test")
    np.savez(folder / "rows.npz", x=vectors.astype(np.float32), y=labels, split=splits)
    ensure_packed(Arrays(str(folder / "rows.npz")), folder / "packed", PackOptions(num_processes=1))
    return folder / "packed"


@pytest.fixture
def config_file(packed: Path, tmp_path: Path) -> Path:
    return write_config(
        tmp_path / "vectors.yaml",
        packed,
        tmp_path,
        model={"backbone": "mlp", "options": {"in_features": FEATURES, "hidden": [16]}, "embedding_dim": 16},
        losses=[{"name": "norm_softmax"}, {"name": "supervised_contrastive", "memory_size": 40}],
        train={"steps": 30, "log_every": 1, "checkpoint_every": 10, "max_skipped_steps": 30},
    )


def vectors_task(config_file: Path, name: str, *overrides: str) -> Task:
    return task_of(config_file, name, *DATA, *overrides)


def entries(task: Task, kind: str) -> list[str]:
    lines = task.progress.read_text().splitlines()
    return [entry[kind] for entry in map(json.loads, lines) if kind in entry]


def told(task: Task) -> list[str]:
    """The faults that are of steps."""
    return [fault for fault in entries(task, "fault") if "is skipped" in fault]


def test_the_sample_is_named_and_the_run_is_the_same_at_any_number_of_workers(
    gloo_pool: GlooPool, config_file: Path
) -> None:
    runs = {}
    for num_ranks in (1, 3):
        task = vectors_task(config_file, f"w{num_ranks}")
        gloo_pool.run(num_ranks, work_on_rank, task)
        runs[num_ranks] = task
        logged = steps_of(task.folder)
        skipped = {step for step, entry in logged.items() if "train/loss" not in entry["metrics"]}
        assert 2 <= len(skipped) < 15
        assert sorted(logged) == list(range(1, 31))
        files = sorted((Path(task.folder) / "skipped_steps").iterdir())
        assert [file.name for file in files] == [f"step_{step:08d}.json" for step in sorted(skipped)]
        for number, (step, file, fault) in enumerate(zip(sorted(skipped), files, told(task), strict=True), 1):
            assert fault.startswith(f"step {step} is skipped: the loss is nan (norm_softmax nan, supervised_contr")
            assert f"the embedding of sample '{BAD_ROW:0>8}' " in fault
            assert str(file) in fault
            assert fault.endswith(f"({number} of 30 that may be)")
            assert logged[step]["metrics"]["train/skipped_steps"] == number
            content = json.loads(file.read_text())
            (bad,) = [s for s in content["samples"] if not s["embedding_is_finite"]]
            assert (bad["class"], bad["input_is_finite"]) == ("0", True)
            assert f"on rank {bad['rank']}" in fault
            assert len(content["samples"]) == 16
            assert content["num_gradients_not_finite"] > 0
    assert batches(runs[1].folder) == batches(runs[3].folder)
    losses = [{step: e["metrics"].get("train/loss") for step, e in steps_of(t.folder).items()} for t in runs.values()]
    assert losses[0] == losses[1]


def test_one_more_than_may_be_ends_the_run_and_a_resume_does_not_forget(gloo_pool: GlooPool, config_file: Path) -> None:
    whole = vectors_task(config_file, "whole")
    gloo_pool.run(1, work_on_rank, whole)
    steps = [step for step, entry in steps_of(whole.folder).items() if "train/loss" not in entry["metrics"]]
    after = next(step for step in (10, 20) if steps[0] <= step < steps[-1])  # a checkpoint between two of them
    num_before = sum(step <= after for step in steps)

    parts = vectors_task(config_file, "parts", f"train.steps={after}")
    gloo_pool.run(2, work_on_rank, parts)
    assert len(told(parts)) == num_before
    again = vectors_task(config_file, "parts", f"train.max_skipped_steps={num_before}")
    with pytest.raises(
        RuntimeError, match=rf"DivergedError: step {steps[num_before]}: .*max_skipped_steps={num_before}"
    ):
        gloo_pool.run(2, work_on_rank, again)
    enough = vectors_task(config_file, "parts", f"train.max_skipped_steps={len(steps)}")
    gloo_pool.run(3, work_on_rank, enough)
    assert told(enough)[-1].endswith(f"({len(steps)} of {len(steps)} that may be)")
    assert sorted(steps_of(enough.folder)) == list(range(1, 31))


def test_none_may_be_skipped(gloo_pool: GlooPool, config_file: Path) -> None:
    task = vectors_task(config_file, "none", "train.max_skipped_steps=0")
    with pytest.raises(RuntimeError, match=r"1 steps were skipped for this, train.max_skipped_steps=0 may be"):
        gloo_pool.run(1, work_on_rank, task)
    assert len(list((Path(task.folder) / "skipped_steps").iterdir())) == 1


def test_a_sample_that_is_not_finite_moves_no_bank_at_the_start(gloo_pool: GlooPool, config_file: Path) -> None:
    task = vectors_task(config_file, "means", "train.bank_start=class_means")
    gloo_pool.run(2, work_on_rank, task)
    assert told(task)
    assert len(curve_of_finite(task)) > 15


def test_offline_mining_names_the_sample(gloo_pool: GlooPool, config_file: Path) -> None:
    task = vectors_task(config_file, "mined", "data.sampling=hard_neighbors", "data.mine_every=5")
    with pytest.raises(RuntimeError, match=rf"DivergedError: .* 1 of 96 training samples .* sample '{BAD_ROW:0>8}' "):
        gloo_pool.run(2, work_on_rank, task)


def test_learning_rates_that_are_far_too_high_end_the_run(gloo_pool: GlooPool, config_file: Path) -> None:
    rates = [f"optim.{part}_lr=1e38" for part in ("backbone", "head", "bank")]
    task = vectors_task(config_file, "high", *rates, "optim.warmup_steps=0", "optim.name=sgd", "optim.clip_norm=null")
    with pytest.raises(RuntimeError, match=r"DivergedError: .*lower the learning rates"):
        gloo_pool.run(2, work_on_rank, task)
    assert all(math.isfinite(loss) for loss in curve_of_finite(task).values())
    assert not list(task.checkpoints.glob("*/record.json"))


def curve_of_finite(task: Task) -> dict[int, float]:
    return {s: e["metrics"]["train/loss"] for s, e in steps_of(task.folder).items() if "train/loss" in e["metrics"]}


def step_of(packed: Path, **changes: Any) -> tuple[Index, SkippedStep]:
    none = torch.zeros(3, dtype=torch.bool)
    values: dict[str, Any] = {
        "step": 7,
        "epoch": 0,
        "step_of_epoch": 6,
        "loss": math.inf,
        "terms": {},
        "gradients": ("model.head.weight",),
        "parameters": (),
        "ids": torch.arange(3),
        "ranks": torch.tensor([0, 0, 1]),
        "broken_inputs": none,
        "broken_embeddings": none,
    }
    return Index.load(packed), SkippedStep(**values | changes)


def test_a_full_disk_does_not_end_the_run(packed: Path, tmp_path: Path) -> None:
    index, step = step_of(packed)
    said: list[str] = []
    (tmp_path / "skipped").symlink_to("/dev/full")  # which cannot be a folder either
    skipped = SkippedSteps(2, tmp_path / "skipped", index, fault=said.append, writes=True)
    skipped(step)
    assert said[0].startswith("step 7 is skipped: the loss is inf; its samples could not be written to ")
    assert "\n" not in said[0]


def test_parameters_that_are_not_finite_end_the_run_at_once(packed: Path, tmp_path: Path) -> None:
    index, step = step_of(packed, parameters=("model.head.bias",))
    skipped = SkippedSteps(9, tmp_path / "skipped", index, fault=pytest.fail, writes=True)
    with pytest.raises(DivergedError, match=r"first model.head.bias: lower the learning rates"):
        skipped(step)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": 1.5}, "the gradient of model.head.weight is not finite; "),
        ({"loss": 1.5, "gradients": ("a", "b", "c")}, "the gradient of a and 2 others is not finite; "),
        ({"broken_inputs": torch.tensor([False, True, False])}, "the input of {sample 1} on rank 0 too; "),
        ({"broken_embeddings": torch.tensor([False, True, True])}, "on rank 0 and 1 others too; "),
        ({"broken_embeddings": torch.ones(3, dtype=torch.bool)}, "the loss is inf; "),
    ],
)
def test_one_line_tells_what_is_known(packed: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    index, step = step_of(packed, **changes)
    lines: list[str] = []
    SkippedSteps(2, tmp_path / "skipped", index, fault=lines.append, writes=False)(step)
    assert said.replace("{sample 1}", index.where(1)) in lines[0]
    assert not (tmp_path / "skipped").exists()
