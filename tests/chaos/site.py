"""Three hosts with Ray, an MLflow server and one run, as whoever breaks them needs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.chaos import workload
from tests.chaos.observe import MlflowStore, ProgressLog, TimedLog
from tests.chaos.processes import on_host
from tests.chaos.shared_disk import SharedDisk
from tests.chaos.tracker import TrackerOnHost
from tests.hosts.network import Hosts
from tests.hosts.ray_cluster import RayOnHosts

DRIVER_HOST = "n0"
# The network sets the pace of the training, about 10 steps a second, so that a fast machine is not at the end before
# all faults have struck.
_MBIT = 400
IMPATIENCE = {
    # A cut network is noticed by Ray in about 10 s, where its defaults take 64 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    # Ours is 20.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
}
_WORKER = ("ray::", "RayTrainWorker")
_DRIVER = ("dmlscale.cli", "train")


class RunEndedError(AssertionError):
    """The command ended when it should have gone on."""


@dataclass
class Site:
    """A run on hosts.

    Args:
        hosts: n0 with the driver, the head of Ray, the MLflow server and a worker; n1 and n2 with a worker each.
        ray: on all of them.
        tracker: the MLflow server.
        disk: of the checkpoints.
        shared: folder that all hosts see.
        log: what the command has printed, each time that it was given.
        config_file: of the run.
        run_name: of the run.
    """

    hosts: Hosts
    ray: RayOnHosts
    tracker: TrackerOnHost
    disk: SharedDisk
    shared: Path
    log: TimedLog
    config_file: Path
    run_name: str = "struck"
    driver: subprocess.Popen[bytes] | None = None
    progress: ProgressLog = field(init=False)

    def __post_init__(self) -> None:
        self.progress = ProgressLog(self.folder / "progress.jsonl")

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.shared / "runs" / self.run_name

    @property
    def store(self) -> MlflowStore:
        """Behind the MLflow server."""
        return MlflowStore(self.tracker.database)

    def ending(self) -> str:
        """The last words of the command."""
        return self.log.text()[-6000:]

    def start_driver(self) -> None:
        """Gives the command; always the same one."""
        command = [sys.executable, "-m", "dmlscale.cli", "train", str(self.config_file), f"run.name={self.run_name}"]
        self.driver = self.ray.start(DRIVER_HOST, command, log=log_file(self.shared))

    def signal_driver(self, number: signal.Signals) -> int:
        """Sends a signal to the command itself and waits until it has ended; returns its exit code."""
        assert self.driver is not None
        for process in on_host(self.hosts, DRIVER_HOST, *_DRIVER):
            with suppress(psutil.NoSuchProcess):  # it ended with the one before
                process.send_signal(number)
        return self.driver.wait(120)

    def power_on(self, name: str) -> None:
        """Starts a host again, and Ray on it."""
        self.hosts.power_on(name)
        self.hosts.slow(name, mbit=_MBIT)
        self.ray.join(name)

    def workers(self, name: str | None = None) -> list[psutil.Process]:
        """The training processes on a host, or on all, in the order of the hosts."""
        names = self.hosts.names if name is None else [name]
        return [process for host in names for process in on_host(self.hosts, host, *_WORKER)]

    def wait_for_step(self, step: int, *, seconds: float) -> None:
        """Waits until a step is logged; see `wait_until`."""
        self.wait_until(lambda: self.progress.step >= step, f"at step {step}", seconds=seconds)

    def wait_for_end(self, *, seconds: float) -> int:
        """Waits for the end of the command and returns its exit code; see `wait_until`."""
        driver = self.driver
        assert driver is not None
        self.wait_until(lambda: driver.poll() is not None, "at its end", seconds=seconds, is_running=False)
        self.progress.look()
        return driver.wait()

    def wait_until(self, is_so: Callable[[], bool], what: str, *, seconds: float, is_running: bool = True) -> float:
        """Waits, and returns how many seconds it took.

        Raises:
            RunEndedError: the command ended meanwhile, unless it may.
            TimeoutError: it is still not so; with the end of the log.
        """
        began = time.monotonic()
        while True:
            self.progress.look()
            if is_so():
                return time.monotonic() - began
            if is_running and self.driver is not None and self.driver.poll() is not None:
                raise RunEndedError(f"the command ended ({self.driver.returncode}) before {what}:\n{self.ending()}")
            if time.monotonic() - began > seconds:
                raise TimeoutError(f"after {seconds:.0f} s: not yet {what}:\n{self.ending()}")
            time.sleep(0.05)


def log_file(shared: Path) -> Path:
    """Of the command."""
    return shared / "driver.log"


@contextmanager
def site_of(folder: Path, *, steps: int, head_cpus: float = 1, **resources: Any) -> Iterator[Site]:
    """Hosts, Ray and MLflow for the time of the block, and all that was started ended after it.

    Args:
        folder: that is empty.
        steps: of the run.
        head_cpus: workers that n0 has room for; the others have room for one each.
        resources: of the config, beside those that are set here.
    """
    shared, disk = folder / "shared", SharedDisk(folder / "checkpoint_disk", megabytes=48)
    shared.mkdir()
    workload.write_vectors(shared / "vectors.npz")
    with ExitStack() as stack:
        stack.enter_context(disk)  # first: a host has what was mounted when it started
        hosts = stack.enter_context(Hosts(3, folder, shm="2g"))
        tracker = TrackerOnHost(hosts, DRIVER_HOST, shared / "mlflow")
        ray = stack.enter_context(RayOnHosts(hosts, cpus=1, cpus_of={DRIVER_HOST: head_cpus}, env=IMPATIENCE))
        tracker.start()
        for name in hosts.names:
            hosts.slow(name, mbit=_MBIT)
        config = workload.write_config(
            folder / "chaos.yaml",
            shared,
            steps=steps,
            train={"checkpoint_folder": str(disk.path)},
            resources={"workers": 3, "heartbeat_timeout_s": 5, "max_failures": 5, "address": "auto"} | resources,
            tracking={"uri": tracker.uri},
        )
        log = stack.enter_context(TimedLog(log_file(shared)))
        yield Site(hosts, ray, tracker, disk, shared, log, config)


def left_behind(folder: Path) -> list[str]:
    """Processes, namespaces and mounts of a site that is no more; there must be none.

    Processes are given a little time to be gone: those that wait for one on a host end after it.
    """
    deadline = time.monotonic() + 30
    while (found := _left_now(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _left_now(folder: Path) -> list[str]:
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.splitlines()
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    own = f"dml{os.getpid()}x"
    processes = [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and any(str(folder) in word for word in process.info["cmdline"])
    ]
    return [space for space in spaces if space.startswith(own)] + mounts + processes
