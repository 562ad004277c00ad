"""Whether a cluster can run what is submitted: its version of Ray, and room for the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs.client import ask, asking
from dmlscale.launch.recovery.elastic import fewest_workers

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


@dataclass(frozen=True)
class Cluster:
    """What a cluster says of itself.

    Args:
        ray_version: as "2.60.0".
        cpus: of each node that is alive.
        gpus: of the same nodes.
        autoscaling: whether more nodes may come.
    """

    ray_version: str
    cpus: tuple[float, ...]
    gpus: tuple[float, ...]
    autoscaling: bool

    @staticmethod
    def of(client: JobSubmissionClient) -> Cluster:
        """Asks the cluster.

        Raises:
            LaunchError: it does not answer.
        """
        from ray.util.state import list_nodes

        version = str(ask(client, "/api/version")["ray_version"])
        with asking(client.get_address()):
            nodes = list_nodes(address=client.get_address(), filters=[("state", "=", "ALIVE")], limit=10_000)
        totals = [node.resources_total or {} for node in nodes]
        return Cluster(
            version,
            tuple(float(total.get("CPU", 0)) for total in totals),
            tuple(float(total.get("GPU", 0)) for total in totals),
            _is_autoscaling(client),
        )


def check_version(cluster: Cluster, own: str, say: Callable[[str], None]) -> None:
    """Whether client and cluster have Ray versions that understand each other.

    Args:
        cluster: that will run the job.
        own: version of Ray here.
        say: told of a difference that does no harm.

    Raises:
        LaunchError: they differ in more than the last number.
    """
    theirs = cluster.ray_version
    if own.split(".")[:2] != theirs.split(".")[:2]:
        raise LaunchError(
            f"Ray is {own} here and {theirs} on the cluster: they must agree, so install ray[default]=={theirs} here, "
            "or use an image with the version from here"
        )
    if own != theirs:
        say(f"warning: Ray is {own} here and {theirs} on the cluster")


def check_room(cluster: Cluster, resources: ResourcesConfig, say: Callable[[str], None]) -> None:
    """Whether the nodes hold all workers at once, each on one node.

    Args:
        cluster: that will run the job.
        resources: of the run, or of one trial.
        say: told of too little room where the cluster may grow.

    Raises:
        LaunchError: they do not, and no more nodes will come.
    """
    on_gpu = resources.device == "gpu"
    held = _held(cluster.cpus, cluster.gpus, resources.cpus_per_worker, on_gpu)
    workers = fewest_workers(resources)
    if held >= workers:
        return
    key = "workers" if resources.min_workers is None else "min_workers"
    needs = f"{workers * resources.cpus_per_worker:g} CPUs" + f" and {workers} GPUs" * on_gpu
    has = f"{sum(cluster.cpus):g} CPUs" + f" and {sum(cluster.gpus):g} GPUs" * on_gpu
    each = f"{resources.cpus_per_worker:g} CPUs" + " and a GPU" * on_gpu
    what = (
        f"resources.{key}={workers} with {each} each needs {needs}; the cluster's {len(cluster.cpus)} "
        f"node(s) have {has}, room for {held} worker(s)"
    )
    if not cluster.autoscaling:
        raise LaunchError(f"{what}: lower resources.{key} or resources.cpus_per_worker, or add nodes")
    say(f"warning: {what} until it has grown")


def _held(cpus: Sequence[float], gpus: Sequence[float], cpus_per_worker: float, on_gpu: bool) -> int:
    """Workers that fit: a worker never spans two nodes."""
    by_cpu = [int(number / cpus_per_worker + 1e-6) for number in cpus]
    return sum(min(fitting, int(number)) if on_gpu else fitting for fitting, number in zip(by_cpu, gpus, strict=True))


def _is_autoscaling(client: JobSubmissionClient) -> bool:
    """Whether an autoscaler has kinds of nodes to start.

    Without a cluster file Ray's monitor still reports, but as the kind of each node it names that node's own id.
    """
    report = ((ask(client, "/api/cluster_status").get("data") or {}).get("clusterStatus") or {}).get("autoscalerReport")
    kinds = ((report or {}).get("nodeTypeMapping") or {}).items()
    return any(kind not in (node, f"node_{node}") and not str(kind).startswith("node_") for node, kind in kinds)
