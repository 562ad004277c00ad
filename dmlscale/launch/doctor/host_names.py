"""Host names: gloo listens on the address that a node's own name resolves to, so it must be one others can reach."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil

from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import Machine, Machines

CHECK = "host name"
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def check_host_names(machines: Machines) -> list[Finding]:
    """Whether the name of each machine leads to an address of its own."""
    answers = machines.ask(look_up_host_name, seconds=20)
    by_name = {machine.name: machine for machine in machines.all}
    alone = len(machines.all) == 1
    found = [judge_host_name(by_name[name], facts, alone=alone) for name, facts in answers.values.items()]
    return [*answers.findings(CHECK), *found]


def look_up_host_name() -> dict[str, Any]:
    """On a node: its name, what that resolves to, its interfaces by address, and those that the variables demand."""
    name = socket.gethostname()
    try:
        # In this order: gloo takes the first that it can bind to.
        resolved = [str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        resolved = []
    interfaces = {
        address.address.partition("%")[0]: interface
        for interface, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family in (socket.AF_INET, socket.AF_INET6)
    }
    demanded = {variable: os.environ[variable] for variable in _VARIABLES if os.environ.get(variable)}
    return {"name": name, "resolved": list(dict.fromkeys(resolved)), "interfaces": interfaces, "demanded": demanded}


def judge_host_name(machine: Machine, facts: Mapping[str, Any], *, alone: bool) -> Finding:
    """A finding from what `look_up_host_name` says of a node.

    Args:
        machine: the node.
        facts: of it.
        alone: whether there is no other node: then loopback will do.
    """
    node, name, interfaces = machine.name, facts["name"], facts["interfaces"]
    for variable, value in facts["demanded"].items():
        if not any(_is_meant(value, interface) for interface in interfaces.values()):
            what = f"{variable}={value}, but there are {', '.join(sorted(set(interfaces.values())))}"
            return Finding(
                node, CHECK, "fail", what, f"set {variable} to one of them in the environment of `ray start`"
            )
    if "GLOO_SOCKET_IFNAME" in facts["demanded"]:
        return Finding(node, CHECK, "ok", f"interface {facts['demanded']['GLOO_SOCKET_IFNAME']} is set")
    usable = [address for address in facts["resolved"] if address in interfaces]
    interface = interfaces.get(machine.address, "eth0")
    advice = (
        f"let {name} resolve to {machine.address} on that node (/etc/hosts), or set GLOO_SOCKET_IFNAME={interface} "
    )
    advice += "in the environment of its `ray start`"
    if alone:
        return Finding(node, CHECK, "ok", f"{name}, the only node")
    if not facts["resolved"]:
        what = f"{name} does not resolve: collectives would listen on 127.0.0.1, where other nodes cannot reach them"
        return Finding(node, CHECK, "fail", what, advice)
    if not usable:
        what = f"{name} resolves to {', '.join(facts['resolved'])}, which is no address of this node"
        return Finding(node, CHECK, "fail", what, advice)
    if ipaddress.ip_address(usable[0]).is_loopback:
        what = f"{name} resolves to {usable[0]}: collectives would listen where other nodes cannot reach them"
        return Finding(node, CHECK, "fail", what, advice)
    return Finding(node, CHECK, "ok", "resolves to an address of the node")


def _is_meant(value: str, interface: str) -> bool:
    """Whether an interface is meant: gloo takes a list of names, NCCL prefixes, "=name" exactly and "^name" all but."""
    if value.startswith("^"):
        return not any(interface.startswith(name) for name in value[1:].split(","))
    if value.startswith("="):
        return interface in value[1:].split(",")
    return any(interface.startswith(name) for name in value.split(","))
