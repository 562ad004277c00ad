"""The door to Ray Train: starts workers, gives each its world and device, and waits for the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dmlscale.config.schema import ResourcesConfig
from dmlscale.distributed.world import World
from dmlscale.launch.cluster import ray_cluster, require, uses_gpu
from dmlscale.launch.errors import WorkersFailedError
from dmlscale.launch.task import Task


def run_on_ray(task: Task, resources: ResourcesConfig) -> dict[str, Any]:
    """Does the task on ``resources.workers`` Ray workers and returns rank 0's result.

    Raises:
        LaunchError: the cluster is not there or has less than asked for.
        WorkersFailedError: workers ended with an error, more often than ``resources.max_failures``.
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
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    available = ray.cluster_resources()
    require(resources, available, "the cluster")
    use_gpu = uses_gpu(resources, available)
    logs = Path(task.folder) / "ray"
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={
            "task": asdict(task),
            "threads": max(1, int(resources.cpus_per_worker)),
            "reports": bool(callbacks),
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            # Ours is the state that resumes a run; Ray must not find an older attempt's under the same name.
            name=f"attempt-{len(list(logs.glob('attempt-*'))):03d}",
            storage_path=str(logs),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            callbacks=list(callbacks),
        ),
    )
    try:
        result: dict[str, Any] = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        failures = getattr(error, "worker_failures", None) or {0: error}
        raise WorkersFailedError(
            {rank: _first_words(failure) for rank, failure in sorted(failures.items())}, str(logs)
        ) from error
    return result


def _first_words(failure: Any) -> str:
    cause = getattr(failure, "cause", None) or failure
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[0]


def _on_worker(settings: dict[str, Any]) -> dict[str, Any]:
    from ray.train.torch import get_device

    from dmlscale.launch.worker import work

    device = get_device()
    # OpenMP threads that outnumber the cores a worker owns spin against each other: 6x the CPU time was measured.
    torch.set_num_threads(settings["threads"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return work(Task(**settings["task"]), World.current(), device, report=_report if settings["reports"] else None)


def _report(metrics: Mapping[str, float]) -> None:
    import ray.train

    ray.train.report(dict(metrics))
