"""The training that the faults strike: small vectors, a small network, a bank of classes and a memory of embeddings."""

from __future__ import annotations

import math
import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from dmlscale.config.load import load_config
from dmlscale.distributed.world import World
from dmlscale.launch.run import run_folder
from dmlscale.launch.task import Task
from dmlscale.launch.worker import work

FEATURES, TRAIN_CLASSES, TEST_CLASSES, PER_CLASS = 64, 120, 20, 100
CLASSES_PER_BATCH, SAMPLES_PER_CLASS = 12, 2
BATCHES_PER_EPOCH = TRAIN_CLASSES * PER_CLASS // (CLASSES_PER_BATCH * SAMPLES_PER_CLASS)
# A number, but the network's sums over it are none: each epoch has one batch whose loss is not finite.
TOO_LARGE = 3e38


def write_vectors(path: Path) -> None:
    """Writes the dataset, of which one sample is broken."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(TRAIN_CLASSES), PER_CLASS)
    test_labels = np.repeat(np.arange(TRAIN_CLASSES, TRAIN_CLASSES + TEST_CLASSES), 4)
    everything = np.concatenate([labels, test_labels])
    centers = rng.normal(size=(TRAIN_CLASSES + TEST_CLASSES, FEATURES))
    vectors = (centers[everything] + rng.normal(size=(len(everything), FEATURES))).astype(np.float32)
    vectors[rng.integers(len(labels))] = TOO_LARGE
    splits = np.where(everything < TRAIN_CLASSES, "train", "test")
    np.savez(path, x=vectors, y=everything, split=splits)


def write_config(path: Path, folder: Path, *, steps: int, **sections: Any) -> Path:
    """Writes the config; ``sections`` are added to its own.

    Args:
        path: of the config.
        folder: that all hosts share: holds the vectors (vectors.npz), the packed data and the runs.
        steps: length of the run.
        sections: as resources={"workers": 3}.
    """
    values: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder / "runs")},
        "data": {
            "path": str(folder / "packed"),
            "source": {"name": "arrays", "path": str(folder / "vectors.npz")},
            "input": "array",
            "transform": "as_is",
            "eval_transform": "as_is",
            "classes_per_batch": CLASSES_PER_BATCH,
            "samples_per_class": SAMPLES_PER_CLASS,
            "num_streams": 6,
        },
        "model": {
            "backbone": "mlp",
            "options": {"in_features": FEATURES, "hidden": [256, 256]},
            "embedding_dim": 32,
        },
        "optim": {"backbone_lr": 5e-4, "head_lr": 5e-4, "bank_lr": 5e-3, "warmup_steps": 20},
        "train": {
            "steps": steps,
            "log_every": 1,
            "checkpoint_every": 15,
            "keep_checkpoints": 3,
            "max_skipped_steps": math.ceil(steps / BATCHES_PER_EPOCH) + 1,
        },
        "evaluation": {"gallery_queries": 0, "report": False, "raw_pixels": False},
        "resources": {"device": "cpu"},
        "tracking": {"experiment": "chaos"},
    }
    losses = [{"name": "multi_similarity", "memory_size": 96}, {"name": "proxy_anchor", "weight": 0.1}]
    for name, section in sections.items():
        values[name] = values[name] | section
    path.write_text(yaml.safe_dump(values | {"losses": losses}))
    return path


def start_undisturbed(config_file: Path, name: str, *overrides: str) -> tuple[Path, Future[dict[str, Any]]]:
    """Starts the same training in one process; returns the folder of its run and the result to come."""
    config = run_folder.resolve(load_config(config_file, [f"run.name={name}", *overrides]), "undisturbed")
    folder = run_folder.open_folder(config, resume=True)
    task = Task("train", config.model_dump(mode="json"), str(folder))
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    future = pool.submit(_alone, task)
    pool.shutdown(wait=False)
    return folder, future


def _alone(task: Task) -> dict[str, Any]:
    torch.set_num_threads(1)
    return work(task, World(), torch.device("cpu"))
