"""jobs/slurm.sbatch under a real Slurm on two hosts, which share a part of the disk and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from dmlscale.data.packing.pack import ensure_packed
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources.glyphs import Glyphs
from dmlscale.training import checkpoint
from tests.hosts.network import Hosts
from tests.hosts.slurm import Slurm, why_no_slurm
from tests.integration.runs import curve, steps_of, write_config

SCRIPT = Path("jobs/slurm.sbatch").absolute()
real_slurm = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_no_slurm() is not None, reason=str(why_no_slurm())),
]
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "DMLSCALE_SCRATCH": "/dev/shm",  # each host has its own, as real ones have their own /tmp
    "OMP_NUM_THREADS": "1",
    "RAY_memory_monitor_refresh_ms": "0",  # it looks at the whole machine, other tests included
    "RAY_worker_niceness": "0",  # of 15 by itself, and other tests' processes would go first
}
TWO_NODES = ("--nodes=2", "--cpus-per-task=1")
# Longer than any test; its checkpoints are those that a signal asked for.
STOPPED = ("train", "small.yaml", "run.name=stopped", "train.steps=100000", "train.checkpoint_every=100000")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all nodes see: the data, a config, and the runs."""
    folder = tmp_path_factory.mktemp("shared")
    ensure_packed(Glyphs(limit_classes=24, num_processes=1), folder / "glyphs", PackOptions(num_processes=1))
    write_config(
        folder / "small.yaml",
        folder / "glyphs",
        folder,
        resources={"workers": 2, "device": "cpu"},
        tracking={"experiment": "tests"},  # its address comes with the job
    )
    return folder


@pytest.fixture(scope="module")
def slurm(folder: Path) -> Iterator[Slurm]:
    with Hosts(2, folder) as hosts, Slurm(hosts, folder, cpus=2, gpus=1) as slurm:
        yield slurm


@pytest.fixture
def queue(slurm: Slurm) -> Iterator[Slurm]:
    """The same, without jobs that an earlier test has left."""
    yield slurm
    slurm.cancel_all()


def submit(slurm: Slurm, folder: Path, *command: str, options: tuple[str, ...] = TWO_NODES, interface: str = "") -> str:
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    environment = ENVIRONMENT | store | {"DMLSCALE_INTERFACE": interface}
    return slurm.submit([*options, f"--chdir={folder}", SCRIPT, *command], env=environment)


def output(folder: Path, job: str) -> str:
    path = folder / f"slurm-{job}.out"
    return path.read_text() if path.exists() else ""


def runs_of(folder: Path, name: str) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], f"attributes.run_name = '{name}'"))


def until_step(slurm: Slurm, folder: Path, name: str, step: int, job: str) -> None:
    deadline = time.monotonic() + 240
    progress = folder / "runs" / name / "progress.jsonl"
    while not progress.exists() or max(steps_of(progress.parent), default=0) < step:
        assert time.monotonic() < deadline, output(folder, job)
        assert slurm.job(job)["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), output(folder, job)
        time.sleep(0.5)


def processes(slurm: Slurm, host: str) -> str:
    return slurm.hosts.run(host, ["ps", "-eo", "args"]).stdout


def left_over(slurm: Slurm, job: str, *, folders: bool = True) -> list[str]:
    """Processes that name a job's folder, and that folder, by host; given a little time to be gone."""
    deadline = time.monotonic() + 30
    while True:
        found = [
            f"{host}: {line}"
            for host in slurm.hosts.names
            for line in processes(slurm, host).splitlines()
            + (slurm.hosts.run(host, ["ls", "/dev/shm"]).stdout.splitlines() if folders else [])
            if f"dmlscale-{job}" in line
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def reaches(slurm: Slurm, host: str, port: int) -> bool:
    """Whether a host gets a connection to the first one's port."""
    script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5)"
    return slurm.hosts.run(host, ["python3", "-c", script, slurm.hosts.address("n0"), str(port)]).returncode == 0


@pytest.mark.parametrize(
    ("job", "command", "words"),
    [
        ({}, ["train", "config.yaml"], "not in a Slurm job"),
        ({"SLURM_JOB_ID": "1"}, [], "no command"),
        ({"SLURM_JOB_ID": "1"}, ["--requeue", "evaluate", "runs/mine"], "evaluate cannot go on"),
        ({"SLURM_JOB_ID": "1", "PATH": "/usr/bin:/bin"}, ["train", "config.yaml"], "set DMLSCALE_VENV"),
    ],
)
def test_refuses_before_it_starts_anything(tmp_path: Path, job: dict[str, str], command: list[str], words: str) -> None:
    done = subprocess.run(
        ["bash", SCRIPT, *command], env=os.environ | job, cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


class TestUnderSlurm:
    pytestmark = real_slurm

    def test_two_jobs_share_nodes_and_a_stopped_one_goes_on(self, queue: Slurm, folder: Path) -> None:
        slurm = queue
        stopped = submit(slurm, folder, *STOPPED, options=(*TWO_NODES, "--gpus-per-node=1"))
        until_step(slurm, folder, "stopped", 20, stopped)
        assert "Ray over 2 nodes (n0 n1): 2 CPUs, 2 GPUs" in output(folder, stopped)
        for host in slurm.hosts.names:  # each host sees its own processes only
            assert "ray::RayTrainWorker" in processes(slurm, host)
        self.check_closed_to_others(slurm, folder, stopped)

        whole = submit(slurm, folder, "train", "small.yaml", "run.name=whole", interface="veth0")
        done = slurm.wait(whole, timeout=300)
        assert (done["JobState"], done["ExitCode"]) == ("COMPLETED", "0:0"), output(folder, whole)
        assert sorted(curve(folder / "runs" / "whole")) == list(range(1, 21))
        (run,) = runs_of(folder, "whole")
        assert run.info.status == "FINISHED"
        assert run.data.tags["cluster.slurm_job"] == whole
        assert not left_over(slurm, whole)

        slurm.run(["scancel", "--signal=TERM", "--batch", stopped])
        done = slurm.wait(stopped, timeout=120)
        assert (done["JobState"], done["ExitCode"]) == ("FAILED", "75:0"), output(folder, stopped)
        first = self.saved_step(folder)
        assert first >= 20
        assert not left_over(slurm, stopped)

        again = submit(slurm, folder, "--requeue", *STOPPED)
        until_step(slurm, folder, "stopped", first + 10, again)
        slurm.run(["scancel", "--signal=TERM", "--batch", again])
        slurm.wait(again, timeout=120, states=("PENDING",))
        second = self.saved_step(folder)
        assert second >= first + 10
        until_step(slurm, folder, "stopped", second + 10, again)
        assert slurm.job(again)["Restarts"] == "1"
        assert len(runs_of(folder, "stopped")) == 1

        slurm.run(["scancel", again])
        assert slurm.wait(again, timeout=120)["JobState"] == "CANCELLED"
        assert not left_over(slurm, again, folders=False)

    def test_one_node_and_a_command_that_fails(self, queue: Slurm, folder: Path) -> None:
        slurm = queue
        job = submit(slurm, folder, "evaluate", "runs/nothing", options=("--nodes=1", "--cpus-per-task=2"))
        done = slurm.wait(job, timeout=240)
        assert (done["JobState"], done["ExitCode"]) == ("FAILED", "2:0"), output(folder, job)
        text = output(folder, job)
        assert "Ray over 1 nodes" in text
        assert "runs/nothing is neither a checkpoint nor a run" in text
        assert list(folder.glob(f"ray-logs-{job}/n?/logs/raylet.out")), text
        assert not left_over(slurm, job)

    def check_closed_to_others(self, slurm: Slurm, folder: Path, job: str) -> None:
        """A job's Ray cluster asks for a token that only its owner can read; the dashboard is for the head alone."""
        scratch = f"/dev/shm/dmlscale-{job}"
        for host in slurm.hosts.names:
            modes = slurm.hosts.run(host, ["stat", "--format=%a", scratch, f"{scratch}/token"]).stdout.split()
            assert modes == ["700", "600"]
        token = slurm.hosts.run("n0", ["cat", f"{scratch}/token"]).stdout.strip()
        assert len(token) == 64
        assert token == slurm.hosts.run("n1", ["cat", f"{scratch}/token"]).stdout
        address = slurm.hosts.run("n0", ["cat", f"{scratch}/ray/ray_current_cluster"]).stdout.strip()
        assert reaches(slurm, "n1", int(address.rpartition(":")[2]))
        ask = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
        environment = ENVIRONMENT | {"RAY_AUTH_MODE": "token"}
        assert slurm.hosts.run("n1", ask, env=environment | {"RAY_AUTH_TOKEN": token}).returncode == 0
        assert slurm.hosts.run("n1", ask, env=environment | {"RAY_AUTH_TOKEN": "0" * 64}).returncode != 0
        dashboard = re.search(r"dashboard http://127.0.0.1:(\d+) on the head", output(folder, job))
        assert dashboard is not None
        assert not reaches(slurm, "n1", int(dashboard[1]))

    def saved_step(self, folder: Path) -> int:
        newest = checkpoint.latest(folder / "runs" / "stopped" / "checkpoints")
        assert newest is not None
        return checkpoint.read_record(newest).step
