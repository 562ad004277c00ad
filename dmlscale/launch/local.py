"""One process, no Ray: the same work as on a cluster, for a laptop, a debugger or a GPU box with torch alone."""

from __future__ import annotations

import os
from typing import Any

import torch

from dmlscale.config.schema import ResourcesConfig
from dmlscale.distributed.world import World
from dmlscale.launch.errors import LaunchError, WorkersFailedError
from dmlscale.launch.recovery.failures import first_line
from dmlscale.launch.recovery.out_of_memory import is_on_device, is_out_of_memory, memory_advice
from dmlscale.launch.task import Task
from dmlscale.launch.worker import made_ready


def run_local(task: Task, resources: ResourcesConfig) -> dict[str, Any]:
    """Does the task in this process, on all cores it owns, and returns its result.

    Raises:
        WorkersFailedError: there is not enough memory, and the message says what would lower the need; or a training
            that had begun ended with an error that tells what was wrong, as on a cluster.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    has_begun = False
    try:
        job = made_ready(task, World(), local_device(resources))
        has_begun = task.kind == "train"
        return job()
    except Exception as error:
        if is_out_of_memory(error):
            advice = memory_advice(task.settings, on_device=is_on_device(error))
            raise WorkersFailedError({0: first_line(error)}, task.folder, advice) from error
        if has_begun and type(error).__module__.startswith("dmlscale."):
            # All of it: what to do is at its end, and there is no log in which it could be read.
            raise WorkersFailedError({0: f"{type(error).__name__}: {error}"}, task.folder) from error
        raise


def local_device(resources: ResourcesConfig) -> torch.device:
    """The device of a run in this process.

    Raises:
        LaunchError: a GPU is asked for and there is none.
    """
    if resources.device == "gpu" and not torch.cuda.is_available():
        raise LaunchError("resources.device=gpu, but torch sees no GPU here: use resources.device=cpu")
    return torch.device("cpu" if resources.device == "cpu" or not torch.cuda.is_available() else "cuda")
