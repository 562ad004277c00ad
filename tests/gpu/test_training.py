"""Trainings on a GPU: the CPU's curve, stops and changes of the device, and settings that save time or memory."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from dmlscale.launch.errors import WorkersFailedError
from dmlscale.launch.local import run_local
from dmlscale.launch.task import Task
from tests.integration.runs import batches, curve, steps_of, task_of

FP32 = "train.precision=fp32"
NO_CHECKPOINTS = "train.checkpoint_every=1000000"


def train(task: Task) -> dict[str, Any]:
    return run_local(task, task.settings.resources)


def trained(config_file: Path, name: str, *overrides: str) -> Task:
    task = task_of(config_file, name, *overrides)
    train(task)
    return task


@pytest.fixture
def same_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions that add in the same order each time, in float32."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("same_kernels")
def test_the_curve_is_that_of_the_cpu(config_file: Path) -> None:
    """As far as rounding, which training amplifies, lets them be alike."""
    common = (FP32, NO_CHECKPOINTS, "train.steps=6", "train.reproducible=false")
    on_gpu = trained(config_file, "gpu", *common)
    on_cpu = trained(config_file, "cpu", *common, "resources.device=cpu")
    assert batches(on_gpu.folder) == batches(on_cpu.folder)
    assert curve(on_gpu.folder) == pytest.approx(curve(on_cpu.folder), rel=1e-3)


def test_half_precision_learns(config_file: Path) -> None:
    # The precision is chosen by the device.
    task = trained(config_file, "bf16", NO_CHECKPOINTS, "train.steps=60", "losses=[{name: norm_softmax}]")
    losses = list(curve(task.folder).values())
    assert len(losses) == 60
    assert all(math.isfinite(loss) for loss in losses)
    assert mean(losses[-10:]) < 0.8 * mean(losses[:10])


@pytest.mark.usefixtures("same_kernels")
@pytest.mark.parametrize(
    ("option", "rel"),
    [
        ("train.micro_batch_size=12", 1e-3),
        ("train.activation_checkpointing=true", 1e-3),
        ("train.reproducible=true", 1e-3),
        ("train.compile=true", 1e-2),
    ],
)
def test_what_saves_time_or_memory_keeps_the_curve(config_file: Path, option: str, rel: float) -> None:
    common = (FP32, NO_CHECKPOINTS, "train.steps=5")
    plain = trained(config_file, "plain", *common)
    other = trained(config_file, "other", *common, option)
    assert curve(other.folder) == pytest.approx(curve(plain.folder), rel=rel)


@pytest.mark.usefixtures("same_kernels")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_as_if_nothing_was(config_file: Path, precision: str) -> None:
    options = (f"train.precision={precision}", "train.reproducible=true")
    whole = trained(config_file, "whole", *options)
    task = task_of(config_file, "parts", *options)
    task.stop_file.touch()
    stopped = train(task)
    assert stopped["stopped"]
    task.stop_file.unlink()
    finished = train(task)
    assert finished["started_at_step"] == stopped["step"]
    assert batches(task.folder) == batches(whole.folder)
    assert curve(task.folder) == pytest.approx(curve(whole.folder), rel=1e-4)


@pytest.mark.usefixtures("same_kernels")
@pytest.mark.parametrize(("before", "after"), [("gpu", "cpu"), ("cpu", "gpu")])
def test_a_run_goes_on_on_another_device(config_file: Path, before: str, after: str) -> None:
    options = (FP32, "train.reproducible=false", "train.steps=12")
    whole = trained(config_file, "whole", *options)
    task = task_of(config_file, "parts", *options, f"resources.device={before}")
    task.stop_file.touch()
    stopped = train(task)
    task.stop_file.unlink()
    finished = train(task_of(config_file, "parts", *options, f"resources.device={after}"))
    assert finished["started_at_step"] == stopped["step"]
    assert batches(task.folder) == batches(whole.folder)
    assert curve(task.folder) == pytest.approx(curve(whole.folder), rel=2e-2)


def test_figures_of_pace_and_cost_are_logged(config_file: Path) -> None:
    task = trained(config_file, "figures")
    steps = steps_of(task.folder)
    assert all(entry["metrics"]["throughput/samples_per_s"] > 0 for entry in steps.values())
    text = task.progress.read_text()
    assert '"checkpoint"' in text


def test_too_little_memory_on_the_device_says_what_to_do(config_file: Path) -> None:
    """A real failure to allocate, after which the process goes on."""
    task = task_of(config_file, "large", FP32, "model.options={}")  # some 90 MB of weights, gradients and moments
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**25) / total)
    try:
        with pytest.raises(WorkersFailedError) as caught:
            train(task)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    said = str(caught.value)
    assert "out of memory" in said
    assert "train.precision=bf16" in said
    assert "train.micro_batch_size" in said
    assert math.isfinite(curve(trained(config_file, "after", FP32, "train.steps=2").folder)[2])
    assert free > 2**30  # else another process would have been the cause
