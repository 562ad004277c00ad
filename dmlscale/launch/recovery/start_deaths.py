"""Why workers died before all of them had started, which Ray Train does not pass on, and whether it is a node's end.

A node that is off keeps its place on Ray's list for a minute, and workers are started there in vain: that is waited
out. A process that ends by itself on a node that is there will do the same at the next start: that is a failure.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Any

from dmlscale.launch.recovery.supervision import AttemptFailedError

# For a connection to a node that is there.
_ANSWERS_WITHIN_S = 1.0
_WORKER = "RayTrainWorker"
# Ended by Ray because of others.
_CONSEQUENCES = ("RAY_KILL", "OUT_OF_SCOPE", "REF_DELETED", "OWNER_DIED")


def answers(address: str) -> bool:
    """Whether a node of the cluster can be reached from this process now, whatever Ray thinks of it."""
    import ray

    try:
        here = [node for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == address]
        socket.create_connection((address, here[-1]["NodeManagerPort"]), _ANSWERS_WITHIN_S).close()
    except Exception:  # Ray's own, of many classes, while its head is away; or no such node; or it is silent
        return False
    return True


def dead_workers() -> dict[str, dict[str, Any]]:
    """Ray's entries of all workers of this job that have ended, by their ids; none where it does not answer."""
    import ray
    from ray._private import state

    job = ray.get_runtime_context().get_job_id()
    try:
        actors = state.actors(job_id=ray.JobID.from_hex(job), actor_state_name="DEAD")  # Ray has no public word for it
    except Exception:  # of many classes; to know the cause is not worth an error
        return {}
    return {key: entry for key, entry in actors.items() if entry["ActorClassName"] == _WORKER}


def failed_start(error: BaseException, before: Collection[str]) -> AttemptFailedError:
    """What to raise for workers that died before all had started.

    Args:
        error: Ray's, which says only that.
        before: ids of workers that were dead already.
    """
    import ray

    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    by_themselves, with_their_node, lasting = [], set(), []
    for key, entry in dead_workers().items():
        kind = entry["DeathCause"].WhichOneof("context")
        if key in before or kind is None:
            continue
        context = getattr(entry["DeathCause"], kind)
        address = entry["Address"]
        host = hosts.get(address["NodeID"]) or address["IPAddress"] or "a node"
        if kind == "actor_died_error_context":
            reason = type(context).Reason.Name(context.reason)
            if reason in _CONSEQUENCES:
                continue
            if reason == "NODE_DIED" or context.never_started or not answers(address["IPAddress"]):
                with_their_node.add(host)
            else:
                by_themselves.append(
                    f"the worker on {host} (pid {entry['Pid']}) was killed or crashed before all had started; its "
                    f"last words are in Ray's logs on {host}: worker-*-{entry['Pid']}.err"
                )
        elif kind == "creation_task_failure_context":
            lasting.append(f"a worker on {host} cannot start: {_line(context.formatted_exception_string, -1)}")
        else:
            by_themselves.append(f"a worker on {host} cannot start: {_line(context.error_message, 0)}")
    if lasting:
        return AttemptFailedError({-1: RuntimeError(lasting[0])})
    if by_themselves and not with_their_node:
        return AttemptFailedError({-1: type(error)(by_themselves[0])})
    if with_their_node:
        names = ", ".join(sorted(with_their_node))
        error = type(error)(f"{names} {'does' if len(with_their_node) == 1 else 'do'} not answer")
    return AttemptFailedError({-1: error}, is_for_start=True)


def _line(text: str, number: int) -> str:
    return (text.strip().splitlines() or ["no reason is told"])[number].strip()
