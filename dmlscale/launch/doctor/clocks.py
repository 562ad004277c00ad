"""Clocks: the times of runs, checkpoints and logs are compared between nodes."""

from __future__ import annotations

import time
from collections.abc import Mapping

from dmlscale.launch.doctor.finding import Finding, Status
from dmlscale.launch.doctor.machines import Machines

CHECK = "clock"
_ROUNDS = 5
_APART_SECONDS, _TOO_FAR_APART_SECONDS = 1.0, 30.0


def check_clocks(machines: Machines) -> list[Finding]:
    """Whether all machines have the time that the head has.

    Each is asked for its time by itself, several times: the answer was given in the middle of the way there and back,
    give or take half of it, so the shortest way counts. A single machine is not compared with itself.
    """
    if len(machines.all) < 2:
        return []
    offsets, found = {}, []
    for machine in machines.all:
        ways = []
        for _ in range(_ROUNDS):
            sent = time.time()
            answers = machines.ask(look_at_clock, {machine.name: ()})
            received = time.time()
            if machine.name not in answers.values:
                found += answers.findings(CHECK)
                break
            ways.append((received - sent, answers.values[machine.name] - (sent + received) / 2))
        if ways:
            offsets[machine.name] = min(ways)[1]
    head = next((machine.name for machine in machines.all if machine.name in offsets), "")
    return found + judge_clocks(offsets, head)


def look_at_clock() -> float:
    """On a node: its time, in seconds."""
    return time.time()


def judge_clocks(offsets: Mapping[str, float], head: str) -> list[Finding]:
    """Findings from how far each clock is ahead of this process's, in seconds.

    Args:
        offsets: by node.
        head: the node that the others are compared with.
    """
    found = []
    for node, offset in offsets.items():
        apart = offset - offsets[head]
        way = "ahead of" if apart > 0 else "behind"
        if abs(apart) < _APART_SECONDS:
            found.append(Finding(node, CHECK, "ok", f"within {_APART_SECONDS:g} s of the head"))
            continue
        status: Status = "fail" if abs(apart) > _TOO_FAR_APART_SECONDS else "warn"
        what = f"{abs(apart):,.1f} s {way} {head}"
        found.append(Finding(node, CHECK, status, what, "let it follow a time server: chrony or systemd-timesyncd"))
    return found
