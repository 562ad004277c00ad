"""One process, no Ray: the same work as on a cluster, for a laptop, a debugger or a GPU box with torch alone.

Started by ``torchrun`` it is as many processes as torchrun starts.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from dmlscale.config.schema import ResourcesConfig
from dmlscale.distributed.world import World, process_group
from dmlscale.launch.task import Task
from dmlscale.launch.worker import work


def run_local(task: Task, resources: ResourcesConfig) -> dict[str, Any]:
    """Does the task in this process and returns its result."""
    device = _device(resources)
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return work(task, World(), device)
    with process_group("nccl" if device.type == "cuda" else "gloo") as world:
        return work(task, world, device)


def _device(resources: ResourcesConfig) -> torch.device:
    if resources.device == "cpu" or (resources.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
