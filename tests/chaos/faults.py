"""What each fault does to a run, and what the run's output must say of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.plan import FaultKind
from tests.chaos.site import DRIVER_HOST, Site

EXIT_RESUME_ME = 75
_TOLD_WITHIN = 90  # seconds
_LOST = r"^fault: .*(lost|killed|died|not been heard from|is gone|cut|preempted|Connection closed).*"


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Args:
        strike: breaks something and mends it again as somebody would who looks after the cluster, if that is needed.
        says: what a line of the output must look like.
        restarts: whether the workers have to start again.
    """

    strike: Callable[[Site, int], None]
    says: str
    restarts: bool = True


def wait_until_told(site: Site, kind: FaultKind, since: float) -> None:
    """Waits until the output tells of a fault.

    Raises:
        TimeoutError: it does not.
    """
    says = FAULTS[kind].says
    site.wait_until(lambda: bool(site.log.since(since, says)), f"told of: {kind}", seconds=_TOLD_WITHIN)


def _kill_worker(site: Site, victim: int) -> None:
    workers = site.workers()
    workers[victim % len(workers)].kill()


def _hang_worker(site: Site, victim: int) -> None:
    workers = site.workers()
    workers[victim % len(workers)].suspend()


def _slow_worker(site: Site, victim: int) -> None:
    """One gets a twentieth of the time until it is told of, and is well again then.

    The same rank is told of once in five minutes, so if nothing is said the next one is slowed down.
    """
    workers, since = site.workers(), time.monotonic()
    first = victim % len(workers)
    for worker in [*workers[first:], *workers[:first]]:
        until = time.monotonic() + _TOLD_WITHIN / len(workers)
        while time.monotonic() < until and not site.log.since(since, FAULTS["worker slow"].says):
            worker.suspend()
            time.sleep(0.04)
            worker.resume()
            time.sleep(0.002)


def _node_off(site: Site, victim: int) -> None:
    name = _other_host(site, victim)
    site.hosts.power_off(name)
    time.sleep(3)
    site.power_on(name)


def _cut_network(site: Site, victim: int) -> None:
    """Cut until it is told of and the workers on the far side have ended by themselves; Ray's node ends by itself too,
    once it hears that it was given up, and is started again."""
    name, since = _other_host(site, victim), time.monotonic()
    site.hosts.cut(name)
    wait_until_told(site, "network cut", since)
    site.wait_until(lambda: not site.workers(name), f"the orphans on {name} gone", seconds=60)
    site.hosts.heal(name)
    site.ray.rejoin(name)


def _kill_driver(site: Site, victim: int) -> None:
    site.signal_driver(signal.SIGKILL)
    site.start_driver()


def _stop_driver(site: Site, victim: int) -> None:
    code = site.signal_driver(signal.SIGTERM)
    assert code == EXIT_RESUME_ME, site.ending()
    site.start_driver()


def _fill_disk(site: Site, victim: int) -> None:
    since = time.monotonic()

    def is_told() -> bool:
        site.disk.fill()  # again: an old checkpoint that is deleted would leave room for each new one
        return bool(site.log.since(since, FAULTS["storage full"].says))

    try:
        site.wait_until(is_told, "told of: storage full", seconds=_TOLD_WITHIN)
    finally:
        site.disk.empty()


def _damage_checkpoint(site: Site, victim: int) -> None:
    site.signal_driver(signal.SIGKILL)
    site.wait_until(lambda: not site.workers(), "the workers gone", seconds=60, is_running=False)
    site.disk.damage_newest_checkpoint()
    site.start_driver()


def _kill_tracker(site: Site, victim: int) -> None:
    since = time.monotonic()
    site.tracker.kill()
    wait_until_told(site, "tracker killed", since)
    site.tracker.start()


def _freeze_tracker(site: Site, victim: int) -> None:
    since = time.monotonic()
    site.tracker.freeze()
    wait_until_told(site, "tracker hung", since)
    site.tracker.thaw()


def _other_host(site: Site, victim: int) -> str:
    others = [name for name in site.hosts.names if name != DRIVER_HOST]
    return others[victim % len(others)]


FAULTS: dict[FaultKind, Fault] = {
    "worker killed": Fault(_kill_worker, _LOST),
    "worker hung": Fault(_hang_worker, _LOST),
    "worker slow": Fault(_slow_worker, r"^fault: rank \d+ \(.*\) is slow", restarts=False),
    "node off": Fault(_node_off, _LOST),
    "network cut": Fault(_cut_network, _LOST),
    "driver killed": Fault(_kill_driver, r"^continuing run \S+ at step \d+"),
    "driver stopped": Fault(_stop_driver, r"^stopped at step \d+ with everything saved"),
    "storage full": Fault(_fill_disk, r"^fault: checkpoint of step \d+ could not be written", restarts=False),
    "checkpoint damaged": Fault(_damage_checkpoint, r"^fault: .*: going back to "),
    "tracker killed": Fault(_kill_tracker, r"^fault: tracking: ", restarts=False),
    "tracker hung": Fault(_freeze_tracker, r"^fault: tracking: ", restarts=False),
}
