"""Whether the workers of a config find room on the nodes."""

from __future__ import annotations

from collections.abc import Sequence

from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.cluster import check_resources, require, uses_gpu
from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import Machine
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.recovery.elastic import fewest_workers

CHECK = "resources"


def judge_capacity(resources: ResourcesConfig, machines: Sequence[Machine]) -> list[Finding]:
    """A finding from what Ray announces, or from what this machine has where Ray is not running."""
    if not machines:
        return []  # none answered, which is a finding already
    announced = [machine.resources for machine in machines if machine.resources is not None]
    try:
        if not announced:
            check_resources(resources)
            return [Finding("", CHECK, "ok", f"{resources.workers} workers fit")]
        total = {kind: sum(each.get(kind, 0.0) for each in announced) for kind in ("CPU", "GPU")}
        require(resources, total, "the cluster")
        on_gpus = uses_gpu(resources, total)
    except LaunchError as error:
        what, _, advice = str(error).partition(": ")
        return [Finding("", CHECK, "fail", what, advice)]
    # A worker lies on one node: what is left over on several does not add up to another one.
    room = [int(each.get("CPU", 0.0) / resources.cpus_per_worker + 1e-6) for each in announced]
    if on_gpus:
        room = [min(fits, int(each.get("GPU", 0))) for fits, each in zip(room, announced, strict=True)]
    workers = fewest_workers(resources)
    key = "workers" if resources.min_workers is None else "min_workers"
    if sum(room) < workers:
        what = f"resources.{key}={workers}, but the nodes have room for {sum(room)} as each is cut"
        return [Finding("", CHECK, "fail", what, f"lower resources.{key} or resources.cpus_per_worker")]
    fit = min(sum(room), resources.workers)
    kind = "a GPU each" if on_gpus else "without GPUs"
    return [Finding("", CHECK, "ok", f"{fit} workers fit on {len(announced)} nodes, {kind}")]
