"""What a node gives to processes: open files, processes, shared memory, memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from typing import Any

import psutil

from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import Machine, Machines

FILES, PROCESSES, SHARED_MEMORY, MEMORY = "open files", "processes", "shared memory", "memory"
_GIB = 2**30
_FEW_FILES, _TOO_FEW_FILES = 4096, 1024
_FEW_PROCESSES, _TOO_FEW_PROCESSES = 4096, 512
# Containers have 64 MiB unless told otherwise: data loaders and NCCL end there with a bus error.
_LITTLE_SHARED, _TOO_LITTLE_SHARED = _GIB, 128 * 2**20
_LITTLE_MEMORY = 2 * _GIB
_SHARE_OF_OBJECT_STORE = 0.3


def check_limits(machines: Machines) -> list[Finding]:
    """Whether each machine gives its processes enough."""
    answers = machines.ask(look_at_limits)
    by_name = {machine.name: machine for machine in machines.all}
    found = [finding for name, limits in answers.values.items() for finding in judge_limits(by_name[name], limits)]
    return [*answers.findings(FILES), *found]


def look_at_limits() -> dict[str, Any]:
    """On a node: limits of this process, which Ray's processes hand down to workers; -1 is none. Bytes of memory."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    shared = os.statvfs("/dev/shm")
    return {
        "open_files": files,
        "processes": processes,
        "shared_memory": shared.f_blocks * shared.f_frsize,
        "memory_available": psutil.virtual_memory().available,
        "memory_total": psutil.virtual_memory().total,
        "is_root": os.geteuid() == 0,  # whom the limit of processes does not bind
    }


def judge_limits(machine: Machine, limits: Mapping[str, Any]) -> list[Finding]:
    """Findings from what `look_at_limits` says of a node."""
    node = machine.name
    found = [
        _judge_count(
            node, FILES, limits["open_files"], _FEW_FILES, _TOO_FEW_FILES,
            "raise it before `ray start`: `ulimit -n 65536`, or LimitNOFILE= of its service",
        ),
        _judge_shared_memory(machine, limits["shared_memory"]),
    ]  # fmt: skip
    if not limits["is_root"]:
        advice = "raise it before `ray start`: `ulimit -u 32768`, or pids of the container"
        count = limits["processes"]
        found.append(_judge_count(node, PROCESSES, count, _FEW_PROCESSES, _TOO_FEW_PROCESSES, advice))
    free, total = limits["memory_available"] / _GIB, limits["memory_total"] / _GIB
    if limits["memory_available"] < _LITTLE_MEMORY:
        what = f"only {free:.1f} of {total:.0f} GiB are free"
        found.append(Finding(node, MEMORY, "warn", what, "a worker takes 0.6 GiB before any data: end what else runs"))
    else:
        found.append(Finding(node, MEMORY, "ok", f"{total:.0f} GiB, enough of it free"))
    return found


def _judge_count(node: str, check: str, count: int, few: int, too_few: int, advice: str) -> Finding:
    if count < 0:
        return Finding(node, check, "ok", "no limit")
    if count < too_few:
        return Finding(node, check, "fail", f"{count:,}, at least {few:,} are needed", advice)
    if count < few:
        return Finding(node, check, "warn", f"{count:,}, better {few:,} or more", advice)
    return Finding(node, check, "ok", f"{few:,} or more")


def _judge_shared_memory(machine: Machine, size: int) -> Finding:
    store = (machine.resources or {}).get("object_store_memory", 0.0)
    wanted = max(_LITTLE_SHARED, _SHARE_OF_OBJECT_STORE * store)
    what = f"/dev/shm has {size / _GIB:.2f} GiB, {wanted / _GIB:.1f} GiB are needed"
    advice = "give the container more: --shm-size=8g (docker), an emptyDir with medium: Memory at /dev/shm (Kubernetes)"
    if size < _TOO_LITTLE_SHARED:
        return Finding(machine.name, SHARED_MEMORY, "fail", what, advice)
    if size < wanted:
        return Finding(machine.name, SHARED_MEMORY, "warn", what, advice)
    return Finding(machine.name, SHARED_MEMORY, "ok", f"/dev/shm has {size / _GIB:.0f} GiB")
