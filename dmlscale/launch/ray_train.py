"""The door to Ray Train: starts workers, gives each its world and device, and waits for the result."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dmlscale.config.schema import ResourcesConfig
from dmlscale.distributed.world import World
from dmlscale.launch.errors import LaunchError, WorkersFailedError
from dmlscale.launch.task import Task

# Set before Ray starts, for it and for its workers.
ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line is printed twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the end of a run is noticed this late
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def check_resources(resources: ResourcesConfig) -> None:
    """Refuses, before any work, what a cluster started on this machine could not hold.

    Raises:
        LaunchError: more workers than cores or GPUs.
    """
    if resources.address is None and "RAY_ADDRESS" not in os.environ:
        available = {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
        _require(resources, available, "this machine")
        _uses_gpu(resources, available)


def run_on_ray(task: Task, resources: ResourcesConfig) -> dict[str, Any]:
    """Does the task on ``resources.workers`` Ray workers and returns rank 0's result.

    Raises:
        LaunchError: the cluster is not there or has less than asked for.
        WorkersFailedError: workers ended with an error, more often than ``resources.max_failures``.
    """
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    import ray

    own_cluster = resources.address is None and "RAY_ADDRESS" not in os.environ
    already_up = ray.is_initialized()
    if not already_up:
        _connect(resources.address, own_cluster)
    try:
        return _fit(task, resources, ray.cluster_resources())
    finally:
        if not already_up:
            ray.shutdown()


def _connect(address: str | None, own_cluster: bool) -> None:
    import ray

    # What workers have to say comes through the run's progress file; their own output stays in Ray's logs.
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if own_cluster:
        settings["include_dashboard"] = False  # 3 s faster; sweeps, which need it, start their own
        settings["num_cpus"] = len(os.sched_getaffinity(0))
    else:
        settings |= {"address": address or "auto", "runtime_env": {"env_vars": ENVIRONMENT}}
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError) as error:
        raise LaunchError(
            f"cannot reach the Ray cluster {address or os.environ.get('RAY_ADDRESS')}: {error}"
        ) from error


def _require(resources: ResourcesConfig, available: dict[str, float], where: str) -> None:
    wanted = resources.workers * resources.cpus_per_worker
    cpus = available.get("CPU", 0.0)
    if wanted > cpus:
        raise LaunchError(
            f"resources.workers={resources.workers} with cpus_per_worker={resources.cpus_per_worker:g} needs "
            f"{wanted:g} CPUs, {where} has {cpus:g}: lower resources.workers, or give each less "
            f"(resources.cpus_per_worker={cpus / resources.workers:.2g})"
        )


def _uses_gpu(resources: ResourcesConfig, available: dict[str, float]) -> bool:
    gpus = int(available.get("GPU", 0))
    if resources.device == "gpu" and gpus < resources.workers:
        raise LaunchError(
            f"resources.device=gpu with resources.workers={resources.workers} needs as many GPUs, the cluster has "
            f"{gpus}: lower resources.workers or use resources.device=cpu"
        )
    return resources.device != "cpu" and gpus >= resources.workers


def _fit(task: Task, resources: ResourcesConfig, available: dict[str, float]) -> dict[str, Any]:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    _require(resources, available, "the cluster")
    use_gpu = _uses_gpu(resources, available)
    logs = Path(task.folder) / "ray"
    trainer = TorchTrainer(
        _on_worker,
        train_loop_config={"task": asdict(task), "threads": max(1, int(resources.cpus_per_worker))},
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
    return work(Task(**settings["task"]), World.current(), device)
