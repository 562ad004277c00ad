"""Small trainings, and what they wrote."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

from dmlscale.config.load import load_config
from dmlscale.distributed.world import World
from dmlscale.launch.run import run_folder
from dmlscale.launch.task import Task
from dmlscale.launch.worker import work

CPU = torch.device("cpu")
# Environment of a command that starts Ray of its own, on a machine that has other work.
BESIDE_OTHERS = {
    "RAY_memory_monitor_refresh_ms": "0",  # it looks at the whole machine
    "RAY_worker_niceness": "0",  # of 15 by itself, and all other work would go first, for minutes
}


@cache
def _empty_store() -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    """MLflow takes a second to make one, at each run of a test; the second value keeps the folder."""
    from mlflow.tracking import MlflowClient  # here, since ranks import this file and need no MLflow

    folder = tempfile.TemporaryDirectory(prefix="store-")
    file = Path(folder.name) / "mlflow.db"
    with contextlib.redirect_stderr(io.StringIO()):  # whoever asks first may look at what a command says there
        MlflowClient(f"sqlite:///{file}").search_experiments()
    return file, folder


def new_store(folder: Path) -> str:
    """Puts a database for MLflow, in which there is nothing yet, into a folder; returns its address."""
    file = folder / "mlflow.db"
    if not file.exists():
        shutil.copyfile(_empty_store()[0], file)
    return f"sqlite:///{file}"


def write_config(path: Path, data: Path, folder: Path, **sections: Any) -> Path:
    """Writes a small config, with an empty tracking store; ``sections`` replace its own."""
    values: dict[str, Any] = {
        "run": {"folder": str(folder / "runs"), "name": "small"},
        "data": {
            "path": str(data),
            "channels": 1,
            "classes_per_batch": 12,
            "samples_per_class": 4,
            "num_streams": 4,
            "transform": "standardize_shift",
            "eval_transform": "standardize",
        },
        "model": {
            "backbone": "resnet10t",
            "options": {"channels": [8, 8, 16, 16], "stem_width": 8, "norm_layer": "groupnorm1"},
            "embedding_dim": 16,
        },
        "losses": [{"name": "triplet"}, {"name": "proxy_anchor", "weight": 0.1}],
        "optim": {"backbone_lr": 2e-3, "head_lr": 2e-3, "bank_lr": 1e-2, "warmup_steps": 3, "clip_norm": 5.0},
        "train": {"steps": 20, "log_every": 1, "checkpoint_every": 8, "bank_start": "class_means"},
        "evaluation": {"batch_size": 64, "gallery_queries": 3, "report": False},  # which takes seconds
        "resources": {"workers": 1, "device": "cpu"},
    }
    if "tracking" not in sections:
        values["tracking"] = {"uri": new_store(folder), "experiment": "tests"}
    path.write_text(yaml.safe_dump(values | sections))
    return path


def task_of(config_file: Path, name: str, *overrides: str) -> Task:
    """A training task without tracking, whose folder is there."""
    config = run_folder.resolve(load_config(config_file, [f"run.name={name}", *overrides]), "small")
    folder = run_folder.open_folder(config, resume=True)
    return Task("train", config.model_dump(mode="json"), str(folder))


def work_on_rank(world: World, task: Task) -> dict[str, Any]:
    """For the gloo pool."""
    return work(task, world, CPU)


def steps_of(folder: str | Path) -> dict[int, dict[str, Any]]:
    """What was logged at each step; the last word counts where a step was repeated. The run may be going on."""
    text = (Path(folder) / "progress.jsonl").read_text()
    whole = text[: text.rfind("\n") + 1]  # the last line may just be being written
    entries = [json.loads(line) for line in whole.splitlines()]
    return {entry["step"]: entry for entry in entries if "metrics" in entry}


def curve(folder: str | Path) -> dict[int, float]:
    """Loss by step."""
    return {step: entry["metrics"]["train/loss"] for step, entry in steps_of(folder).items()}


def batches(folder: str | Path) -> dict[int, str]:
    """Digest of the global batch by step."""
    return {step: entry["batch"] for step, entry in steps_of(folder).items()}
