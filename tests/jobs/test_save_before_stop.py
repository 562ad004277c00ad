"""What pods do before they stop, on a host with processes of its own like a pod."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.network import Hosts, why_no_hosts
from tests.jobs.files import JOBS

pytestmark = pytest.mark.skipif(why_no_hosts() is not None, reason=str(why_no_hosts()))
HOOK = ["bash", str(JOBS / "kuberay" / "save_before_stop.sh")]
# Stands for a process of the run: waits for the file as a training does, takes its time to save, and ends.
AT_WORK = """
import pathlib, sys, time
request = pathlib.Path(sys.argv[2]) / "stop-requested"
(request.parent.parent / "started").touch()
while not request.exists():
    time.sleep(0.05)
time.sleep(float(sys.argv[3]))
(request.parent / "saved").touch()
"""


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(1, tmp_path_factory.mktemp("pod")) as hosts:
        yield hosts


def start(pod: Hosts, run: Path, *, title: str, seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", AT_WORK, title, str(run), str(seconds)]
    process = pod.start("n0", command, log=run.parent / "log")
    deadline = time.monotonic() + 60
    while not (run.parent / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs of dmlscale" / "mine"  # the words that the script looks for may be in its arguments
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("title", ["ray::RayTrainWorker.train", "/usr/local/bin/dmlscale"])
def test_it_waits_until_the_run_has_saved(pod: Hosts, run: Path, title: str) -> None:
    process = start(pod, run, title=title, seconds=0.5)
    done = pod.run("n0", [*HOOK, str(run), "60"])
    assert (done.returncode, done.stdout) == (0, "")
    assert (run / "saved").exists()
    assert process.wait(timeout=10) == 0


def test_a_pod_of_workers_tells_ray_and_the_run_goes_on(pod: Hosts, run: Path) -> None:
    """In the place of Ray and of the driver that hears of it: a program that notes its words and ends the worker."""
    told = run.parent / "told"
    program = run.parent / "programs" / "ray"
    program.parent.mkdir()
    program.write_text(f'#!/usr/bin/env bash\necho "$@" >"{told}"\ntouch "{run}/stop-requested"\n')
    program.chmod(0o755)
    process = start(pod, run, title="ray::RayTrainWorker.train", seconds=0.5)
    done = pod.run("n0", [*HOOK, str(run), "60"], env={"PATH": f"{program.parent}:/usr/bin:/bin"})
    assert (done.returncode, done.stdout) == (0, "")
    assert process.wait(timeout=10) == 0
    words = told.read_text()
    assert words.startswith("drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")
    assert words.endswith(" --deadline-remaining-seconds 60\n")


def test_where_the_run_was_started_it_stops(pod: Hosts, run: Path) -> None:
    program = run.parent / "programs" / "ray"
    program.parent.mkdir()
    program.write_text("#!/usr/bin/env bash\nexit 0\n")
    program.chmod(0o755)
    process = start(pod, run, title="/usr/local/bin/dmlscale", seconds=0.5)
    done = pod.run("n0", [*HOOK, str(run), "60"], env={"PATH": f"{program.parent}:/usr/bin:/bin"})
    assert done.returncode == 0
    assert (run / "saved").exists()  # it was asked by the file: the program that is there in Ray's place asks nobody
    assert process.wait(timeout=10) == 0


def test_ray_knows_the_words() -> None:
    """The command is hidden in Ray's help, so its options may change."""
    program = str(Path(sys.executable).parent / "ray")
    done = subprocess.run([program, "drain-node", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for word in ("--reason ", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message ", "--deadline-remaining-seconds "):
        assert word in done.stdout, done.stdout


def test_it_does_not_wait_for_ever(pod: Hosts, run: Path) -> None:
    process = start(pod, run, title="ray::RayTrainWorker.train", seconds=3600)
    try:
        done = pod.run("n0", [*HOOK, str(run), "1"])
        assert "was still at work after 1 s" in done.stdout
        assert (run / "stop-requested").exists()
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)
    while pod.run("n0", ["pgrep", "--full", "RayTrainWorker"]).returncode == 0:  # which others would wait for
        time.sleep(0.05)


def test_it_leaves_a_run_alone_of_which_nothing_is_here(pod: Hosts, run: Path) -> None:
    """Pods of a run that is done stop at once, and a later --resume finds no old request."""
    began = time.monotonic()
    done = pod.run("n0", [*HOOK, str(run), "600"])
    assert (done.returncode, done.stdout) == (0, "")
    assert time.monotonic() - began < 5
    assert list(run.iterdir()) == []


def test_ray_itself_is_not_the_run(pod: Hosts, run: Path) -> None:
    """KubeRay starts a worker with the address of its head, and the cluster of this job begins with the same word."""
    head = "dmlscale-quickstart-x7k2p-head-svc.default.svc.cluster.local:6379"
    process = start(pod, run, title=f"ulimit -n 65536; ray start --address={head} --block", seconds=0)
    try:
        done = pod.run("n0", [*HOOK, str(run), "60"])
        assert (done.returncode, done.stdout) == (0, "")
        assert list(run.iterdir()) == []
    finally:
        process.kill()
        process.wait(10)


def test_processes_that_come_and_go_do_not_end_the_wait(pod: Hosts, run: Path) -> None:
    process = start(pod, run, title="ray::RayTrainWorker.train", seconds=2.5)
    coming_and_going = [
        pod.start("n0", ["bash", "-c", "while :; do /bin/true; done"], log=run.parent / f"busy-{number}")
        for number in range(2)
    ]
    try:
        done = pod.run("n0", [*HOOK, str(run), "60"])
        assert (done.returncode, done.stdout) == (0, "")
        assert (run / "saved").exists()
        assert process.wait(timeout=10) == 0
    finally:
        for busy in coming_and_going:
            busy.kill()
            busy.wait(10)


def test_it_says_what_it_needs(pod: Hosts) -> None:
    done = pod.run("n0", HOOK)
    assert done.returncode != 0
    assert "the folder of the run is missing" in done.stdout
