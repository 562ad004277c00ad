"""The door to Ray Train: starts workers, gives each its world and device, and waits for the result."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dmlscale.config.schema import ResourcesConfig
from dmlscale.distributed.world import World
from dmlscale.launch.cluster import ray_cluster, require, uses_gpu
from dmlscale.launch.recovery.elastic import fewest_workers, nodes, of_one_worker, room, scaling
from dmlscale.launch.recovery.failures import kind_of
from dmlscale.launch.recovery.membership import Membership
from dmlscale.launch.recovery.start_deaths import answers, dead_workers, failed_start
from dmlscale.launch.recovery.supervision import AttemptFailedError, Supervisor, tell
from dmlscale.launch.task import Task

# A healthy rank notices that a peer is gone before Ray does, and Ray ends all at the first error that it sees. So a
# broken connection waits a moment, for its cause to be seen first.
_CAUSE_FIRST_S = 1.5


def run_on_ray(task: Task, resources: ResourcesConfig) -> dict[str, Any]:
    """Does the task on ``resources.workers`` Ray workers and returns rank 0's result.

    Raises:
        LaunchError: the cluster is not there or has less than asked for.
        WorkersFailedError: workers ended with an error that a new start cannot mend, or were lost more often than
            ``resources.max_failures``.
    """
    with ray_cluster(resources):
        return fit(task, resources)


def fit(task: Task, resources: ResourcesConfig, *, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """`run_on_ray`, on the cluster that this process is connected to.

    Args:
        task: what to do.
        resources: for it.
        callbacks: of Ray Train. If there are any, the workers report the figures of each evaluation to them.
    """
    import ray

    available = ray.cluster_resources()
    require(resources, available, "the cluster")
    use_gpu = uses_gpu(resources, available)  # once: a run does not change its kind of device when nodes are lost
    membership = Membership(task, resources, use_gpu=use_gpu, say=tell)

    def attempt(logs: Path) -> dict[str, Any]:
        if task.kind == "evaluate":
            return _attempt(task, resources, logs, callbacks, use_gpu=use_gpu)
        with membership:
            return _attempt(task, resources, logs, callbacks, use_gpu=use_gpu)

    def lacking() -> str | None:
        return _lacking(resources, use_gpu=use_gpu)

    return Supervisor(task, resources, attempt, lacking, answers=answers).run()


def _attempt(
    task: Task, resources: ResourcesConfig, logs: Path, callbacks: Sequence[Any], *, use_gpu: bool
) -> dict[str, Any]:
    """One start of the workers."""
    import ray.exceptions
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    before = dead_workers()
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={
            "task": asdict(task),
            "threads": max(1, int(resources.cpus_per_worker)),
            "reports": bool(callbacks),
            "logs": str(logs),
        },
        torch_config=TorchConfig("nccl" if use_gpu else "gloo", timeout_s=_group_timeout_s(resources)),
        scaling_config=ray.train.ScalingConfig(**scaling(resources, use_gpu=use_gpu)),
        run_config=ray.train.RunConfig(
            name=logs.name,
            storage_path=str(logs.parent),
            failure_config=ray.train.FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=list(callbacks),
        ),
    )
    try:
        result: dict[str, Any] = trainer.fit().return_value
    except ray.train.WorkerGroupError as error:
        raise AttemptFailedError(error.worker_failures) from error
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        cause = getattr(error, "controller_failure", error)
        name = type(cause).__name__
        if name == "WorkerGroupStartupFailedError":
            raise failed_start(cause, before) from error
        raise AttemptFailedError({-1: cause}, is_for_room=name == "WorkerGroupStartupTimeoutError") from error
    return result


def _group_timeout_s(resources: ResourcesConfig) -> int:
    """After how many seconds a collective raises.

    The second line of defence behind the watchdog, which ends a worker sooner. It also holds where others wait for a
    long evaluation of one rank, so it is not below torch's own half hour, and never ends a step that the watchdog lets
    be.
    """
    return max(1800, int(1.5 * resources.stall_timeout_s))


def _lacking(resources: ResourcesConfig, *, use_gpu: bool) -> str | None:
    """What the cluster lacks for a start of the workers, nodes that are busy with others counted as room."""
    import ray

    there = nodes()
    has, wanted = room(there, of_one_worker(resources, use_gpu=use_gpu)), fewest_workers(resources)
    if has >= wanted:
        return None
    gone = sorted({node["NodeManagerHostname"] for node in ray.nodes()} - {node.host for node in there})
    why = f" ({', '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone)" if gone else ""
    return f"the cluster has room for {has}{why}"


def _on_worker(settings: dict[str, Any]) -> dict[str, Any]:
    import ray.util
    from ray.train.torch import get_device

    from dmlscale.launch.recovery.roster import write_place
    from dmlscale.launch.worker import work

    world, device = World.current(), get_device()
    write_place(Path(settings["logs"]), world.rank, ray.util.get_node_ip_address())
    # OpenMP threads that outnumber the cores a worker owns spin against each other: 6x the CPU time was measured.
    torch.set_num_threads(settings["threads"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        report = _report if settings["reports"] else None
        return work(Task(**settings["task"]), world, device, report=report, restartable=True)
    except Exception as error:
        if kind_of(error) == "broken_connection":
            time.sleep(_CAUSE_FIRST_S)
        raise


def _report(metrics: Mapping[str, float]) -> None:
    import ray.train

    ray.train.report(dict(metrics))
