"""Submitting, following, listing and stopping, on a cluster of one node that is there for the whole file."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

import dmlscale

_ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",
}


@dataclass(frozen=True)
class Head:
    """A cluster's dashboard, and a folder for what is submitted to it."""

    address: str
    folder: Path

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "dmlscale.cli", *words, "--address", self.address]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of ours; both outputs as one."""
        return subprocess.run(
            self.words(*words), env=os.environ | _ENVIRONMENT, stdout=-1, stderr=-2, text=True, timeout=200
        )

    def start_job(self, job: str, entrypoint: str) -> None:
        """A job that is none of ours."""
        body = {"entrypoint": entrypoint, "submission_id": job}
        requests.post(f"{self.address}/api/jobs/", json=body, timeout=60).raise_for_status()

    def status(self, job: str) -> str:
        return str(requests.get(f"{self.address}/api/jobs/{job}", timeout=60).json()["status"])

    def wait_for(self, job: str, status: str) -> None:
        deadline = time.monotonic() + 100
        while self.status(job) != status:
            assert time.monotonic() < deadline, self.status(job)
            time.sleep(0.2)

    def listed(self) -> dict[str, dict[str, Any]]:
        file = self.folder / "jobs.json"
        assert self.run("jobs", "list", "--json", str(file)).returncode == 0
        return {row["job"]: row for row in json.loads(file.read_text())}


def _free_port() -> int:
    """One that nobody is given by the system or by Ray, both of which hand out many before this one is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    (folder / "project").mkdir()
    (folder / "project/readme").write_text("not empty")
    port, dashboard = _free_port(), _free_port()
    ray = str(Path(sys.executable).parent / "ray")
    # A short folder: sockets have paths of at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray") as short, (folder / "head.log").open("wb") as log:
        words = [ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=1", "--object-store-memory=100000000"]
        words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={short}"]
        words.append(f"--dashboard-agent-listen-port={_free_port()}")  # else one port for all clusters of the machine
        process = subprocess.Popen(words, env=os.environ | _ENVIRONMENT, stdout=log, stderr=log)
        head = Head(f"http://127.0.0.1:{dashboard}", folder)
        try:
            _wait_until_up(head, process)
            yield head
        finally:
            process.terminate()
            process.wait(60)


def _wait_until_up(head: Head, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 100
    while True:
        is_late = process.poll() is not None or time.monotonic() > deadline
        assert not is_late, (head.folder / "head.log").read_text()
        try:
            if requests.get(f"{head.address}/api/jobs/", timeout=10).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.2)


@pytest.mark.slow  # five commands and two jobs, each with an interpreter of its own
def test_a_command_is_packed_listed_and_its_exit_code_is_its_own(head: Head) -> None:
    shared, project, record = head.folder / "shared", head.folder / "project", head.folder / "record.json"
    words = ("submit", "pack", "glyphs", "glyphs", "limit_classes=4", "num_processes=1", "--shared", str(shared))
    order = ("--working-dir", str(project), "--name", "packed", "--json", str(record))
    done = head.run(*words, *order)
    assert done.returncode == 0, done.stdout
    assert "looked at 1 node(s)" in done.stdout
    assert list((shared / "glyphs").iterdir())
    assert json.loads(record.read_text())["exit_code"] == 0
    again = head.run(*words, *order)
    assert again.returncode == 2
    assert "--name packed: the cluster has a job of this id" in again.stdout
    # Refused on the cluster, where alone it can be known: its exit code comes back.
    failed = head.run("submit", "evaluate", str(shared / "nothing"), "--name", "nothing", "--working-dir", str(project))
    assert failed.returncode == 2, failed.stdout
    assert "neither a checkpoint nor a run" in failed.stdout
    listed = head.listed()
    assert (listed["packed"]["status"], listed["packed"]["exit_code"]) == ("SUCCEEDED", 0)
    assert listed["packed"]["command"] == f"pack glyphs {shared}/glyphs"
    assert (listed["nothing"]["status"], listed["nothing"]["exit_code"]) == ("FAILED", 2)
    shown = head.run("jobs", "list").stdout
    assert "packed" in shown
    assert "SUCCEEDED" in shown
    assert head.run("jobs", "logs", "packed").stdout in done.stdout


@pytest.mark.slow  # a job with an environment of its own
def test_the_package_that_is_shipped_is_the_one_that_runs(head: Head) -> None:
    package = head.folder / "package/dmlscale"
    shutil.copytree(Path(dmlscale.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    entry = package / "launch/jobs/entry.py"
    entry.write_text(entry.read_text().replace('f"looked at', 'f"the shipped one looked at'))
    words = ("submit", "evaluate", str(head.folder / "nothing"), "--ship-package", "--name", "shipped")
    done = subprocess.run(
        head.words(*words),
        env=os.environ | _ENVIRONMENT | {"PYTHONPATH": str(package.parent)},
        cwd=head.folder / "project",
        stdout=-1,
        stderr=-2,
        text=True,
        timeout=200,
    )
    assert "the shipped one looked at 1 node(s)" in done.stdout
    assert done.returncode == 2


def test_ctrl_c_leaves_the_job_alone_and_stop_ends_it(head: Head) -> None:
    head.start_job("sleeper", "echo begun; sleep 300")
    head.wait_for("sleeper", "RUNNING")
    log = head.folder / "sleeper.log"
    with log.open("wb") as file:
        follower = subprocess.Popen(
            head.words("jobs", "logs", "sleeper", "--follow"), env=os.environ | _ENVIRONMENT, stdout=file, stderr=file
        )
    while "begun" not in log.read_text():
        assert follower.poll() is None, log.read_text()
        time.sleep(0.1)
    follower.send_signal(signal.SIGINT)
    assert follower.wait(60) == 130
    assert "the job goes on" in log.read_text()
    assert "dmlscale jobs stop sleeper" in log.read_text()
    assert head.status("sleeper") == "RUNNING"
    assert head.run("jobs", "stop", "sleeper").returncode == 137  # it did not say how it ended
    assert head.status("sleeper") == "STOPPED"
    over = head.run("jobs", "stop", "sleeper")
    assert over.returncode == 0
    assert "over already: STOPPED" in over.stdout
    unknown = head.run("jobs", "stop", "unknown")
    assert unknown.returncode == 2
    assert "no job 'unknown'" in unknown.stdout


def test_an_image_without_the_package_is_told(head: Head) -> None:
    head.start_job("bare", f"{sys.executable} -I -S -m dmlscale.launch.jobs.entry")
    head.wait_for("bare", "FAILED")
    told = head.run("jobs", "logs", "bare", "--follow")
    assert told.returncode == 2, told.stdout
    assert "--ship-package" in told.stdout
