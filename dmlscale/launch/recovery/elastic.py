"""How many workers a start of a run gets, where it may go on with fewer than all.

Ray Train's own elasticity does it: of (fewest, most) it starts as many as there is room for, and asks a cluster that
can grow for the most. What it lacks is in this file and in membership.py: it counts by a list of nodes that is up to
20 s old, counts what others use and nodes that are about to leave, and stops workers that it wants to start again
without letting them save.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.errors import LaunchError

# Ray Train looks for more room this often while the workers train. membership.py is earlier, and lets them save first.
_RAY_LOOKS_EVERY_S = 600.0
_ANSWER_S = 10.0
# The workers before have ended, but what they had may not be free yet.
_RELEASED_WITHIN_S = 5.0


@dataclass(frozen=True)
class Node:
    """One that is up.

    Args:
        key: Ray's id of it; a node that was away comes back under another.
        host: name of the machine.
        total: what it has, by Ray's names, as "CPU".
        free: what of that nobody uses.
        leaves_at: when it will be taken away, in seconds since 1970; 0 for a time that nobody told. None: it stays.
    """

    key: str
    host: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    leaves_at: float | None = None


def nodes() -> list[Node]:
    """Those of the cluster that this process is connected to."""
    import ray
    from ray._private import state

    # Ray has no public word for either of these two.
    free = state.available_resources_per_node()
    leaving = state.state.get_draining_nodes()  # by node: milliseconds since 1970
    return [
        Node(
            node["NodeID"],
            node["NodeManagerHostname"],
            node["Resources"],
            free.get(node["NodeID"], {}),
            leaving[node["NodeID"]] / 1000 if node["NodeID"] in leaving else None,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def fewest_workers(resources: ResourcesConfig) -> int:
    """With how many the run may start."""
    return resources.workers if resources.min_workers is None else resources.min_workers


def of_one_worker(resources: ResourcesConfig, *, use_gpu: bool) -> dict[str, float]:
    """What each worker takes, by Ray's names."""
    return {"CPU": resources.cpus_per_worker, **({"GPU": 1.0} if use_gpu else {})}


def room(there: Sequence[Node], worker: Mapping[str, float], *, only_free: bool = False) -> int:
    """How many workers fit on nodes that stay.

    Args:
        there: the nodes.
        worker: what each takes, from `of_one_worker`.
        only_free: beside what is at work already.
    """
    has = [node.free if only_free else node.total for node in there if node.leaves_at is None]
    # Ray counts in ten-thousandths; a third of a CPU three times is one.
    return sum(min(int(of.get(name, 0.0) / amount + 1e-4) for name, amount in worker.items()) for of in has)


def most_workers(there: Sequence[Node], worker: Mapping[str, float], resources: ResourcesConfig) -> int:
    """How many workers Ray Train may be asked for: all, unless it would count room that is none.

    It takes all nodes for its own, whatever others have on them, and nodes that are about to leave for ones that stay.

    Args:
        there: the nodes.
        worker: what each takes.
        resources: of the run, of which nobody is at work.
    """
    counted = min(resources.workers, room([replace(node, leaves_at=None) for node in there], worker))
    free = room(there, worker, only_free=True)
    return resources.workers if free >= counted else max(fewest_workers(resources), free)


def scaling(resources: ResourcesConfig, *, use_gpu: bool) -> dict[str, Any]:
    """Arguments of Ray Train's ``ScalingConfig`` for one start of the workers, on the cluster as it is now.

    Raises:
        LaunchError: this Ray Train knows no elasticity.
    """
    worker = of_one_worker(resources, use_gpu=use_gpu)
    shape = {"use_gpu": use_gpu, "resources_per_worker": worker}
    fewest, most = fewest_workers(resources), resources.workers
    if fewest < most:
        _require_elasticity()
        _let_ray_count_anew()
        deadline = time.monotonic() + _RELEASED_WITHIN_S
        while (most := most_workers(nodes(), worker, resources)) < resources.workers and time.monotonic() < deadline:
            time.sleep(0.2)
    if fewest == most:
        return {"num_workers": most, **shape}
    return {"num_workers": (fewest, most), "elastic_resize_monitor_interval_s": _RAY_LOOKS_EVERY_S, **shape}


def _require_elasticity() -> None:
    import ray
    from ray.train import ScalingConfig

    if "elastic_resize_monitor_interval_s" not in inspect.signature(ScalingConfig).parameters:
        raise LaunchError(
            f"resources.min_workers needs a Ray Train that can start with fewer workers, which {ray.__version__} "
            "cannot: install ray 2.60 or newer, or leave resources.min_workers out"
        )


def _let_ray_count_anew() -> None:
    """Has Ray Train's list of nodes renewed, which it does by itself every 20 s only.

    Else a start after a node was lost would wait for the lost one, and one after a node has joined leave it out. The
    list is kept by an actor that all trainings of a cluster share. It stays on the node where the first of them was;
    if that is gone it answers nobody ever again, so it is removed, and the next who needs one makes one.
    """
    import ray

    try:
        coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    except ValueError:
        return  # none yet: a new one knows what there is
    try:
        ray.get(coordinator.get_reserved_resources.remote("dmlscale", recompute=True), timeout=_ANSWER_S)
    except TypeError:
        return  # of a Ray in which nobody can ask for it
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
        ray.kill(coordinator)
