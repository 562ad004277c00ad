"""The nodes of a Ray cluster, each asked by an actor of its own."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import Answers, Machine, Machines, in_short

_START_SECONDS = 90.0  # a node's first Python process of a job takes 2 s, many times that on a busy machine
_AT_A_TIME = 8  # questions that a node can be at; one that hangs holds up no other


@contextmanager
def cluster_machines() -> Iterator[Machines]:
    """The nodes of the cluster that this process is connected to, ready to be asked; the head comes first."""
    import ray

    machines = _Nodes()
    try:
        yield machines
    finally:
        for actor in machines.actors.values():
            ray.kill(actor)


def unreachable(machines: Machines) -> list[Finding]:
    """A failure for each node on which no process can be started."""
    advice = "look into the Ray logs of the node, or start Ray on it again (`ray stop`, `ray start`)"
    return Answers(silent=dict(machines.lost)).findings("node", advice)


class _Asked:
    """Runs what it is sent; becomes an actor."""

    def run(self, look: Callable[..., Any], given: Sequence[Any]) -> Any:
        return look(*given)


class _Nodes:
    """`Machines` by actors, one pinned to each node; nodes whose actor did not start are in ``lost``."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        _send_by_value()
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        actor = ray.remote(num_cpus=0, max_concurrency=_AT_A_TIME, max_restarts=0)(_Asked)
        actors = {
            node_id: actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()
            for node_id in nodes
        }
        _, silent = _results(
            {node_id: asked.run.remote(_hello, ()) for node_id, asked in actors.items()}, _START_SECONDS
        )
        answering = _machines({node_id: node for node_id, node in nodes.items() if node_id not in silent})
        known = {machine.address for machine in answering.values()}
        # Ray counts a node that ended without notice as alive for a minute, also where it has been started again.
        gone = {node_id: nodes[node_id] for node_id in silent if nodes[node_id]["NodeManagerAddress"] not in known}
        self.lost: Mapping[str, str] = {machine.name: silent[node_id] for node_id, machine in _machines(gone).items()}
        self.all: Sequence[Machine] = sorted(answering.values(), key=lambda m: (not m.is_head, m.name))
        self.actors = {machine.name: actors[node_id] for node_id, machine in answering.items()}

    def ask(
        self, look: Callable[..., Any], arguments: Mapping[str, Sequence[Any]] | None = None, *, seconds: float = 15
    ) -> Answers:
        given = {m.name: () for m in self.all} if arguments is None else arguments
        asked = {m.name: self.actors[m.name].run.remote(look, given[m.name]) for m in self.all if m.name in given}
        return Answers(*_results(asked, seconds))


def _results(asked: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """What was answered, and why there was no answer."""
    import ray

    if not asked:
        return {}, {}
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=seconds)
    values, silent = {}, {}
    for name, reference in asked.items():
        if reference not in ready:
            silent[name] = f"no answer within {seconds:g} s"
            continue
        try:
            values[name] = ray.get(reference, timeout=seconds)
        except Exception as error:  # whatever happened there is a finding, not our end
            silent[name] = in_short(error)
    return values, silent


def _hello() -> bool:
    return True


def _machines(nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, Machine]:
    """By Ray's id of the node."""
    hosts = Counter(node["NodeManagerHostname"] for node in nodes.values())
    addresses = Counter(node["NodeManagerAddress"] for node in nodes.values())
    machines = {}
    for node_id, node in nodes.items():
        host, address = node["NodeManagerHostname"], node["NodeManagerAddress"]
        unique = host if hosts[host] == 1 else f"{host}/{address}"
        if hosts[host] > 1 and addresses[address] > 1:
            unique += f"/{node_id[:6]}"
        is_head = "node:__internal_head__" in node["Resources"]
        machines[node_id] = Machine(unique, address, dict(node["Resources"]), is_head)
    return machines


def _send_by_value() -> None:
    """Lets the functions of this package run on nodes that have no dmlscale, or another one: a thing to find out."""
    from ray import cloudpickle

    for name in ("dmlscale.launch.doctor", "dmlscale.distributed.link_speed"):
        if name in sys.modules:  # the second imports torch, which not everybody needs who asks nodes
            cloudpickle.register_pickle_by_value(sys.modules[name])
