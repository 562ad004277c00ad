"""How often the kernels of a cluster's machines have ended a process for want of memory, asked on the machines.

Only there it can be read, by a process that Ray starts on the node. It is asked after a worker was killed, and what is
said of that waits for the answer, so nodes that do not answer soon are left out: they may be gone as well.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from dmlscale.launch.recovery.elastic import nodes
from dmlscale.launch.recovery.memory_kills import count_memory_kills

logger = logging.getLogger(__name__)

# A node's first Python process of a job takes 2 s, more on a busy machine. The workers that follow can use it.
_ANSWER_S = 8.0


def ask_memory_kills(hosts: Collection[str], *, limit_s: float = _ANSWER_S) -> dict[str, int]:
    """By host, those that answered; this machine is looked at directly.

    Args:
        hosts: names of machines, of nodes of the cluster that this process is connected to.
        limit_s: how long to wait for the others.
    """
    here = socket.gethostname()
    counts = {here: count_memory_kills()} if here in hosts else {}
    if others := set(hosts) - {here}:
        try:
            counts |= _ask(others, limit_s)
        except Exception as error:  # whatever it is, what is known of the worker's end must be told
            logger.warning("%s cannot be asked why a worker was killed: %s", ", ".join(sorted(others)), error)
    return counts


def _ask(hosts: Collection[str], limit_s: float) -> dict[str, int]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    count = ray.remote(num_cpus=0, max_retries=0)(count_memory_kills)
    asked: dict[Any, str] = {
        count.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.key, soft=False)).remote(): node.host
        for node in nodes()
        if node.host in hosts
    }
    if not asked:
        return {}
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=limit_s)
    for reference in silent:
        with suppress(Exception):  # its node may be gone
            ray.cancel(reference, force=True)
    counts: dict[str, int] = {}
    for reference in ready:
        with suppress(ray.exceptions.RayError):  # gone just now
            counts[asked[reference]] = ray.get(reference)
    return counts
