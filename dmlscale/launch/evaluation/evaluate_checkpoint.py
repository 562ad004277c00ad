"""What the command ``evaluate`` does on each rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.distributed.world import World
from dmlscale.launch import build
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.evaluation.bank_sample import BankSample, load_banks, trained_labels
from dmlscale.launch.evaluation.evaluator import Evaluator
from dmlscale.launch.evaluation.report import draw_report
from dmlscale.launch.models.exported_folder import untrained
from dmlscale.launch.run.run_folder import check_same_dataset
from dmlscale.launch.task import Task
from dmlscale.training import checkpoint


def evaluate_checkpoint(task: Task, world: World, device: torch.device) -> dict[str, Any]:
    """All metrics of a checkpoint's model on the evaluation split, and a report where the task names a folder for it.

    All ranks return the same, but figures that could not be drawn are left out of rank 0's result alone.
    """
    assert task.checkpoint is not None
    config, path = task.settings, Path(task.checkpoint)
    embedder = untrained(config).to(device)
    stored = {f"model.{name}": tensor for name, tensor in embedder.state_dict().items()}
    checkpoint.load(path, stored, world)
    index = build.open_index(config)
    evaluator = Evaluator(config, index, world, device)
    final = evaluator.finish(embedder, everything=True)
    result = final.result() | {"checkpoint": task.checkpoint}
    if task.report_folder is not None:
        banks, not_loaded = _banks(task, path, config, index) if world.rank == 0 else ([], {})
        step = checkpoint.read_record(path).step
        folder = Path(task.report_folder)
        written = draw_report(evaluator, final, banks, folder, config, index, world, step=step)
        result["left_out"] |= not_loaded | written.left_out
        result["report"] = task.report_folder
    return result


def _banks(task: Task, path: Path, config: Config, index: Index) -> tuple[list[BankSample], dict[str, str]]:
    try:
        check_same_dataset(Path(task.folder), index)
    except LaunchError:
        return [], {"class banks": "this is not the dataset that they were trained with"}
    return load_banks(path, config, index.num_classes, trained_labels(config, index))
