"""A Ray cluster over hosts: the head on the first, a node on each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.hosts.network import Hosts

_RAY = str(Path(sys.executable).parent / "ray")
_OBJECT_STORE = 100_000_000  # bytes


class RayOnHosts:
    """Ray on all hosts for the time of a ``with`` block, with its dashboard.

    Args:
        hosts: that are up.
        cpus: that each node announces, whatever the machine has; of one node by its name in ``cpus_of``.
        env: further variables of every node; of one node by its name in ``env_of``.
        env_of: by host.
        prefix_of: words before the ``ray`` command of a host, e.g. ``("prlimit", "--nofile=512")``.
        only: hosts to start Ray on; all if None. `join` starts it on another later.
    """

    def __init__(
        self,
        hosts: Hosts,
        *,
        cpus: float = 1,
        cpus_of: Mapping[str, float] | None = None,
        env: Mapping[str, str] | None = None,
        env_of: Mapping[str, Mapping[str, str]] | None = None,
        prefix_of: Mapping[str, Sequence[str]] | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        self.hosts = hosts
        self.head = hosts.names[0]
        self.address = f"{hosts.address(self.head)}:6379"
        self.dashboard = f"http://{hosts.address(self.head)}:8265"
        self._cpus, self._cpus_of = cpus, cpus_of or {}
        self._env, self._env_of, self._prefix_of = dict(env or {}), env_of or {}, prefix_of or {}
        self._only = hosts.names if only is None else only

    def __enter__(self) -> RayOnHosts:
        first, *others = self._only
        self.join(first)
        with ThreadPoolExecutor() as threads:
            list(threads.map(self.join, others))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ThreadPoolExecutor() as threads:
            list(threads.map(self._stop, self._only))

    def environment(self, name: str) -> dict[str, str]:
        """Of Ray's processes on a host, and of a driver there."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",  # it looks at the whole machine, other tests included
            "RAY_DISABLE_MEMORY_MONITOR": "1",
            "RAY_worker_niceness": "0",  # of 15 by itself, and other tests' processes would go first
            "RAY_raylet_start_wait_time_s": "120",  # a machine that is busy with other tests needs longer than 30
            **self._env,
            **self._env_of.get(name, {}),
        }

    def join(self, name: str) -> None:
        """Starts Ray on a host.

        Raises:
            RuntimeError: it did not start; with its output.
        """
        cpus = self._cpus_of.get(name, self._cpus)
        own = ["--node-ip-address", self.hosts.address(name), "--num-cpus", f"{cpus:g}", "--disable-usage-stats"]
        own += ["--object-store-memory", str(_OBJECT_STORE)]
        if name == self.head:
            role = ["--head", "--port=6379", "--include-dashboard=true", f"--dashboard-host={self.hosts.address(name)}"]
        else:
            role = [f"--address={self.address}"]
        command = [*self._prefix_of.get(name, ()), _RAY, "start", *role, *own]
        done = self.hosts.run(name, command, env=self.environment(name), timeout=180)
        if done.returncode != 0:
            raise RuntimeError(f"Ray did not start on {name}:\n{done.stdout}")

    def rejoin(self, name: str) -> None:
        """Starts Ray on a host anew, whatever is left there of the one that the head has given up.

        Raises:
            RuntimeError: it did not start; with its output.
        """
        self._stop(name)
        self.join(name)

    def _stop(self, name: str) -> None:
        # On a host that is off or cut off there is nothing to stop, or nobody to tell it.
        with suppress(KeyError, subprocess.TimeoutExpired):
            self.hosts.run(name, [_RAY, "stop", "--force"], env=self.environment(name), timeout=60)

    def run(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """`Hosts.run` with the environment that a driver needs."""
        return self.hosts.run(name, command, env=self.environment(name) | dict(env or {}), timeout=timeout)

    def start(
        self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """`Hosts.start` with the environment that a driver needs."""
        return self.hosts.start(name, command, log=log, env=self.environment(name) | dict(env or {}))
