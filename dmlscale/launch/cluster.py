"""The Ray cluster that runs use: one that is there, or one of this machine for the time being."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.recovery.elastic import fewest_workers

_LOOPBACK = "127.0.0.1"
_LOOPBACK_INTERFACE = "lo"
# What it leaves in the environment of this process, some of it by Ray.
_OF_OWN_CLUSTER = ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

# Set before Ray starts, for it and for its workers.
ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # or every line is printed twice
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the end of a run is noticed this late
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Where there may be fewer workers, so long for a node that Ray Train counted on and that is gone.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # membership.py is one; Ray's would hold back the end of lost workers
}


def check_resources(resources: ResourcesConfig) -> None:
    """Refuses, before any work, what a cluster started on this machine could not hold.

    Raises:
        LaunchError: more workers than cores or GPUs.
    """
    if starts_own_cluster(resources):
        available = {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
        require(resources, available, "this machine")
        uses_gpu(resources, available)


def starts_own_cluster(resources: ResourcesConfig) -> bool:
    """Whether there is no cluster to use."""
    return resources.address is None and not os.environ.get("RAY_ADDRESS")


@contextmanager
def ray_cluster(resources: ResourcesConfig, *, with_dashboard: bool = False) -> Iterator[None]:
    """Connected to the cluster for the block's time; one that is connected already is used and left as it is.

    Args:
        resources: say which.
        with_dashboard: start one too, where the cluster is started here; it takes 3 s more.

    Raises:
        LaunchError: it cannot be reached, or Ray was installed without its dashboard.
    """
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    closing: AbstractContextManager[dict[str, Any]] = nullcontext({})
    if starts_own_cluster(resources):
        closing = _closed_to_others()
    with closing as closed:
        _connect(resources, with_dashboard, closed)
        try:
            yield
        finally:
            ray.shutdown()


def require(resources: ResourcesConfig, available: Mapping[str, float], where: str) -> None:
    """Whether one run fits.

    Raises:
        LaunchError: it needs more CPUs.
    """
    workers = fewest_workers(resources)
    key = "workers" if resources.min_workers is None else "min_workers"
    wanted = workers * resources.cpus_per_worker
    cpus = available.get("CPU", 0.0)
    if wanted > cpus:
        raise LaunchError(
            f"resources.{key}={workers} with cpus_per_worker={resources.cpus_per_worker:g} needs "
            f"{wanted:g} CPUs, {where} has {cpus:g}: lower resources.{key}, or give each less "
            f"(resources.cpus_per_worker={cpus / workers:.2g})"
        )


def uses_gpu(resources: ResourcesConfig, available: Mapping[str, float]) -> bool:
    """Whether workers get a GPU each.

    Raises:
        LaunchError: they are asked for and there are too few.
    """
    gpus = int(available.get("GPU", 0))
    workers = fewest_workers(resources)
    key = "workers" if resources.min_workers is None else "min_workers"
    if resources.device == "gpu" and gpus < workers:
        raise LaunchError(
            f"resources.device=gpu with resources.{key}={workers} needs as many GPUs, the cluster has "
            f"{gpus}: lower resources.{key} or use resources.device=cpu"
        )
    return resources.device != "cpu" and gpus >= workers


def runs_at_once(resources: ResourcesConfig, available: Mapping[str, float]) -> int:
    """How many runs the cluster holds, at least one.

    Raises:
        LaunchError: not even one fits.
    """
    require(resources, available, "the cluster")
    by_cpu = available.get("CPU", 0.0) / (resources.workers * resources.cpus_per_worker)
    by_gpu = available.get("GPU", 0.0) / resources.workers if uses_gpu(resources, available) else by_cpu
    return max(1, int(min(by_cpu, by_gpu) + 1e-6))


@contextmanager
def _closed_to_others() -> Iterator[dict[str, Any]]:
    """Settings of a cluster of this machine that no other machine, and no other user of this one, can use.

    Whoever reaches Ray's ports can run code, so they listen on loopback and ask for a token.

    Ray would take the machine's own address in the place of loopback, unless it is told that this is no machine for
    clusters, which it takes macOS and Windows for. The token is a new one for each cluster, in the environment of this
    process and its children alone: Ray would write one to the user's home, and every cluster started on the machine
    from then on would ask for that. RAY_AUTH_MODE is not set here: for a new cluster tokens are Ray's default, and Ray
    may have been imported already, after which it does not look at that variable again. What the user has set there
    counts. Afterwards all is as it was: with this token the process could enter no other cluster.
    """
    from ray._private import ray_constants

    before = {name: os.environ.get(name) for name in (*_OF_OWN_CLUSTER, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)}
    allowed = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for collectives in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(collectives, _LOOPBACK_INTERFACE)
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield {"_node_ip_address": _LOOPBACK, "dashboard_host": _LOOPBACK}
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = allowed
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _forget_token() -> None:
    """Lets Ray look at the environment again for a token and for whether there must be one: it does so once only."""
    from ray import _raylet as compiled

    compiled.Config.initialize("")  # type: ignore[attr-defined]  # its stub leaves out both
    compiled.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]  # the same


def _known_address() -> dict[str, Any]:
    """Settings of a cluster that its own processes find.

    Train's actors ask the dashboard which of them are alive, and look for it among all clusters of the machine: with a
    second one they would find none. So the address is chosen here, and handed to all of them.
    """
    with socket.socket() as free:
        free.bind((_LOOPBACK, 0))
        port = free.getsockname()[1]
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    environment = {"env_vars": {"RAY_ADDRESS": f"{_LOOPBACK}:{port}"}}
    return {"runtime_env": environment}


def _print_nothing_of_raylets() -> None:
    """Ray would print a paragraph for each process that dies. It is in its logs; what a user needs to know we say."""
    from ray._private import worker

    worker.print_to_stdstream = lambda data, ignore_prefix: None


def _connect(resources: ResourcesConfig, with_dashboard: bool, closed: Mapping[str, Any]) -> None:
    import ray

    # What workers have to say comes through the run's progress file; their own output stays in Ray's logs.
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if starts_own_cluster(resources):
        # Said in so many words: else Ray would take a cluster that somebody has started on this machine.
        settings |= {"address": "local", "num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": with_dashboard}
        if with_dashboard:
            settings |= _known_address()
    else:
        settings |= {"address": resources.address or "auto", "runtime_env": {"env_vars": ENVIRONMENT}}
    _forget_token()
    _print_nothing_of_raylets()
    try:
        ray.init(**settings, **closed)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        where = resources.address or os.environ.get("RAY_ADDRESS") or "on this machine"
        raise LaunchError(f"cannot use the Ray cluster {where}: {error}") from error
    finally:
        os.environ.pop("RAY_GCS_SERVER_PORT", None)  # of this cluster alone
