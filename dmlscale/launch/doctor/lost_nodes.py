"""After how long the cluster notices that a node is cut off."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import Machines

CHECK = "lost nodes"
# Ray's own, of version 2.60.
_DEFAULTS = {"period_ms": 3000, "timeout_ms": 10000, "failure_threshold": 5}
_PREFIX = "RAY_health_check_"
_LONG_S = 40.0
_ADVICE = (
    "start the head with RAY_health_check_period_ms=3000 RAY_health_check_timeout_ms=5000 "
    "RAY_health_check_failure_threshold=3 in its environment, which makes it 24 s"
)


def check_lost_nodes(machines: Machines) -> list[Finding]:
    """How the head has been told to look after the nodes; nothing where it is the only one."""
    if len(machines.all) < 2:
        return []
    (head,) = (machine for machine in machines.all if machine.is_head)
    answers = machines.ask(look_at_health_check, {head.name: ()})
    return [judge_lost_nodes(head.name, settings) for settings in answers.values.values() if settings is not None]


def look_at_health_check() -> dict[str, str] | None:
    """On the head: the settings of the process that looks after the nodes; None if they are hidden."""
    import ray

    return settings_of_head(ray.get_runtime_context().gcs_address.rpartition(":")[2])


def settings_of_head(port: str) -> dict[str, str] | None:
    """Those in the environment of the one of this machine's heads that listens at a port.

    A single one is taken whatever it says of its port, which it may have chosen itself.
    """
    heads = [process for process in psutil.process_iter(["name", "cmdline"]) if process.info["name"] == "gcs_server"]
    if len(heads) > 1:
        heads = [head for head in heads if f"--gcs_server_port={port}" in (head.info["cmdline"] or ())]
    try:
        (head,) = heads
        return {key: value for key, value in head.environ().items() if key.startswith(_PREFIX)}
    except (ValueError, psutil.Error):  # not one, or another user's
        return None


def judge_lost_nodes(head: str, settings: Mapping[str, str]) -> Finding:
    """A finding from what `look_at_health_check` says."""
    period, timeout, threshold = (int(settings.get(f"{_PREFIX}{name}", default)) for name, default in _DEFAULTS.items())
    seconds = (period + timeout) / 1000 * threshold
    what = f"a node that is cut off is noticed after {seconds:.0f} s"
    return Finding(head, CHECK, "warn", what, _ADVICE) if seconds > _LONG_S else Finding(head, CHECK, "ok", what)
