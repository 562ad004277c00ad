"""Opens what rank 0 records a training with."""

from __future__ import annotations

from pathlib import Path

from dmlscale.distributed.world import World
from dmlscale.launch.recovery.attempt import Attempt
from dmlscale.launch.task import Task
from dmlscale.tracking.node_load import NodeLoad, NodeLoads, first_ranks, load_folder
from dmlscale.tracking.sender import Say
from dmlscale.tracking.tracker import NullTracker, Tracker


def open_tracker(task: Task, attempt: Attempt, world: World, say: Say) -> Tracker:
    """The tracker of this start of the workers. All ranks but 0 record nothing, or the load of their machine.

    Args:
        task: that is done.
        attempt: this start of the workers.
        world: the ranks.
        say: who is told what goes wrong with tracking.
    """
    if task.tracking_run is None:
        return NullTracker()
    every_s = task.settings.tracking.system_metrics_every_s
    loads = load_folder(Path(task.folder), attempt.number)
    if world.rank != 0:
        is_first = world.rank in first_ranks(attempt.hosts)
        return NodeLoad(loads, world.rank, interval_s=every_s) if is_first else NullTracker()
    from dmlscale.tracking.mlflow import MlflowTracker  # 3 s to import: on the one rank that needs it

    try:
        options = {"system_interval_s": every_s, "loads": NodeLoads(loads, attempt.hosts), "say": say}
        return MlflowTracker(task.tracking_uri, Path(task.folder), **options)
    except OSError as error:
        say(fault=f"tracking: {task.folder} cannot be written ({error}): until the next start nothing is recorded")
        return NullTracker()
