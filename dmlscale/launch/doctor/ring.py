"""The ring of nodes that collectives go around: who reaches whom, and how fast each link is."""

from __future__ import annotations

import os
import socket
import statistics
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from dmlscale.distributed.link_speed import measure_ring
from dmlscale.launch.doctor.finding import Finding, named
from dmlscale.launch.doctor.machines import Machine, Machines

CHECK, LINK = "collectives", "link"
_CONNECT_SECONDS = 4.0
_IMPORT_SECONDS = 90.0  # torch, on all nodes at once, from busy network storage
_GROUP_SECONDS = 20.0
_SECONDS_PER_LINK = 2.0
_TIMES_SLOWER = 4.0
_PORTS = "open all ports between the nodes: Ray, gloo and NCCL choose theirs as they need them"


def check_ring(machines: Machines, *, nccl: bool = False) -> list[Finding]:
    """Connects each machine with the next, measures all links, and lets all of them add up a tensor.

    Args:
        machines: the nodes; a single one has no links.
        nccl: measure once more between the first GPUs of the nodes.
    """
    nodes = list(machines.all)
    if len(nodes) < 2:
        return []
    interfaces, found = _knock_at_each(machines, nodes)
    if found:
        return found
    loaded = machines.ask(load_torch, seconds=_IMPORT_SECONDS)
    if loaded.silent:
        return loaded.findings(CHECK)
    for backend, device in [("gloo", "cpu"), *([("nccl", "cuda:0")] if nccl else [])]:
        found += _measure(machines, nodes, backend, device, interfaces)
    return found


def _knock_at_each(machines: Machines, nodes: Sequence[Machine]) -> tuple[dict[str, str], list[Finding]]:
    """The interface by which each node reaches the next, and failures where it does not."""
    doors = machines.ask(open_door, {node.name: (node.address, 4 * _CONNECT_SECONDS) for node in nodes})
    targets: dict[str, list[tuple[str, str, int]]] = {}
    for node, after in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        wanted = {after.name: after, nodes[0].name: nodes[0]}  # rank 0 is where all meet
        wanted.pop(node.name, None)
        targets[node.name] = [
            (m.name, m.address, doors.values[m.name]) for m in wanted.values() if m.name in doors.values
        ]
    knocked = machines.ask(
        knock, {name: (doors_to, _CONNECT_SECONDS) for name, doors_to in targets.items()},
        seconds=3 * _CONNECT_SECONDS + 10,
    )  # fmt: skip
    return (
        {name: answer["interface"] for name, answer in knocked.values.items()},
        [*doors.findings(CHECK), *knocked.findings(CHECK), *judge_knocking(knocked.values)],
    )


def open_door(address: str, seconds: float) -> int:
    """On a node: lets others connect to a port of its own for some seconds; returns the port."""
    door = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    door.settimeout(seconds)

    def let_in() -> None:
        with door:
            try:
                while True:
                    door.accept()[0].close()
            except TimeoutError:
                return  # nobody came for so long

    threading.Thread(target=let_in, daemon=True).start()
    return int(door.getsockname()[1])


def knock(doors: Sequence[tuple[str, str, int]], seconds: float) -> dict[str, Any]:
    """On a node: connects to each door (node, address, port); says by which interface, and where it failed."""
    names = {address.address: interface for interface, all_of in psutil.net_if_addrs().items() for address in all_of}
    interface, closed = "", {}
    for node, address, port in doors:
        try:
            with socket.create_connection((address, port), timeout=seconds) as connection:
                own = connection.getsockname()[0]
                interface = names.get(own, own)
        except OSError as error:
            closed[node] = f"{address}: {error}"
    return {"interface": interface, "closed": closed}


def load_torch() -> str:
    """On a node: imports torch, with all GPUs of the node in sight; Ray hides them from whoever asked for none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    import torch

    return str(torch.__version__)


def find_port(address: str) -> int:
    """On a node: a port that nobody listens on."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind((address, 0))
        return int(free.getsockname()[1])


def _measure(
    machines: Machines, nodes: Sequence[Machine], backend: str, device: str, interfaces: Mapping[str, str]
) -> list[Finding]:
    first = nodes[0]
    ports = machines.ask(find_port, {first.name: (first.address,)})
    if ports.silent:
        return ports.findings(CHECK)
    host = f"[{first.address}]" if ":" in first.address else first.address
    address = f"{host}:{ports.values[first.name]}"
    links = len(nodes) * _SECONDS_PER_LINK
    asked = {
        node.name: (rank, len(nodes), address, backend, _GROUP_SECONDS + links, device)
        for rank, node in enumerate(nodes)
    }
    answers = machines.ask(measure_ring, asked, seconds=2 * _GROUP_SECONDS + 2 * links)
    if answers.silent:
        advice = f"look at the interfaces (set {backend.upper()}_SOCKET_IFNAME), and {_PORTS}"
        return [Finding(node, CHECK, "fail", f"{backend}: {reason}", advice) for node, reason in answers.silent.items()]
    return judge_ring(backend, [node.name for node in nodes], answers.values, interfaces)


def judge_knocking(answers: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """A failure for each pair that is not connected."""
    return [
        Finding(node, CHECK, "fail", f"cannot connect to {other} ({reason})", _PORTS)
        for node, answer in answers.items()
        for other, reason in answer["closed"].items()
    ]


def judge_ring(
    backend: str, nodes: Sequence[str], speeds: Mapping[str, Mapping[str, float]], interfaces: Mapping[str, str]
) -> list[Finding]:
    """Findings from the speed of each link: of the whole, and of each node's link to the next.

    Args:
        backend: "gloo" or "nccl".
        nodes: in the order of the ring.
        speeds: what `measure_ring` returned, by node.
        interfaces: by node.
    """
    usual = statistics.median(speed["bytes_per_s"] for speed in speeds.values())
    after = dict(zip(nodes, [*nodes[1:], nodes[0]], strict=True))
    slowest = min(nodes, key=lambda node: speeds[node]["bytes_per_s"])
    summed = min(speed["sum_bytes_per_s"] for speed in speeds.values())
    used = named(sorted(set(interfaces.values())))
    what = (
        f"{backend} over {used}: {len(nodes)} nodes add up {_rate(summed)}; slowest link {slowest} -> {after[slowest]}"
    )
    found = [Finding("", CHECK, "ok", what)]
    for node in nodes:
        speed = speeds[node]
        what = f"{backend} to {after[node]}: {_rate(speed['bytes_per_s'])}, {speed['latency_s'] * 1e3:.2f} ms"
        if speed["bytes_per_s"] * _TIMES_SLOWER < usual:
            what += f", where the median is {_rate(usual)}"
            advice = "see its cable, its switch and which interface it uses: all workers wait for the slowest link"
            found.append(Finding(node, LINK, "warn", what, advice))
        else:
            found.append(Finding(node, LINK, "ok", what))
    return found


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.2f} GB/s" if bytes_per_s >= 1e8 else f"{bytes_per_s / 1e6:.2f} MB/s"
