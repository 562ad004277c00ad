"""Opens what rank 0 records a training with."""

from __future__ import annotations

from pathlib import Path

from dmlscale.distributed.world import World
from dmlscale.launch.task import Task
from dmlscale.tracking.sender import Say
from dmlscale.tracking.tracker import NullTracker, Tracker


def open_tracker(task: Task, world: World, say: Say) -> Tracker:
    """The tracker of this start of the workers; one that records nothing on all ranks but 0.

    Args:
        task: that is done.
        world: the ranks.
        say: who is told what goes wrong with tracking.
    """
    if world.rank != 0 or task.tracking_run is None:
        return NullTracker()
    from dmlscale.tracking.mlflow import MlflowTracker  # 3 s to import: on the one rank that needs it

    try:
        every_s = task.settings.tracking.system_metrics_every_s
        return MlflowTracker(task.tracking_uri, Path(task.folder), system_interval_s=every_s, say=say)
    except OSError as error:
        say(fault=f"tracking: {task.folder} cannot be written ({error}): until the next start nothing is recorded")
        return NullTracker()
