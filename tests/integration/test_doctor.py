"""The doctor on three hosts: healthy ones pass, and a planted fault is found, named with its node, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.hosts.network import Hosts, why_no_hosts
from tests.hosts.ray_cluster import RayOnHosts
from tests.integration.runs import write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_no_hosts() is not None, reason=str(why_no_hosts())),
    pytest.mark.timeout(600),
]

RAY = str(Path(sys.executable).parent / "ray")
MLFLOW_ADDRESS = "10.77.0.50"  # a second one of n2, so that the way to MLflow can be closed and that to n2 left open


class Patient:
    """Three hosts with Ray and what a run needs: a config, its dataset, shared storage and an MLflow server."""

    def __init__(self, hosts: Hosts, cluster: RayOnHosts, config: Path, folder: Path) -> None:
        self.hosts, self.cluster, self.config, self.folder = hosts, cluster, config, folder
        self.storage = folder / "storage"
        self.mlflow = f"http://{MLFLOW_ADDRESS}:5000"

    def examine(self, *overrides: str) -> tuple[int, set[tuple[str, str]], str]:
        """Exit code, what failed as (check, node), and all that was said."""
        file = self.folder / "findings.json"
        file.unlink(missing_ok=True)
        settings = [f"run.folder={self.storage}/runs", f"tracking.uri={self.mlflow}", "resources.workers=3", *overrides]
        # From a folder of its own: workers look for packages in that of the driver first, and here is a dmlscale.
        command = ["env", "-C", str(self.folder), sys.executable, "-m", "dmlscale.cli", "doctor"]
        command += [str(self.config), *settings]
        done = self.cluster.run("n0", [*command, "--address", "auto", "--json", str(file)], timeout=400)
        assert file.exists(), done.stdout
        findings = json.loads(file.read_text())["findings"]
        return done.returncode, {(f["check"], f["node"]) for f in findings if f["status"] == "fail"}, done.stdout

    @contextmanager
    def restarted(
        self, name: str, *, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> Iterator[None]:
        """Ray on a host started with other variables, or by another command, for the block's time."""
        self._start(name, env or {}, prefix)
        try:
            yield
        finally:
            self._start(name, {}, ())

    def _start(self, name: str, env: Mapping[str, str], prefix: Sequence[str]) -> None:
        environment = self.cluster.environment(name)
        self.hosts.run(name, [RAY, "stop"], env=environment, timeout=100)
        command = [*prefix, RAY, "start", "--address", self.cluster.address, "--num-cpus=1", "--disable-usage-stats"]
        command += ["--node-ip-address", self.hosts.address(name), "--object-store-memory=100000000"]
        done = self.hosts.run(name, command, env=environment | dict(env), timeout=180)
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory, glyphs: Path) -> Iterator[Patient]:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "storage").mkdir()
    config = write_config(folder / "small.yaml", glyphs, folder)
    with Hosts(3, folder) as hosts, RayOnHosts(hosts, cpus=1) as cluster:
        hosts.run("n2", ["ip", "addr", "add", f"{MLFLOW_ADDRESS}/24", "dev", "veth0"])
        with mlflow_server(hosts, "n2", folder):
            yield Patient(hosts, cluster, config, folder)


@contextmanager
def mlflow_server(hosts: Hosts, name: str, folder: Path) -> Iterator[None]:
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", MLFLOW_ADDRESS, "--port", "5000"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"]
    env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    process = hosts.start(name, command, log=folder / "mlflow.log", env=env)
    try:
        ask = [
            "python3",
            "-c",
            f"import urllib.request as u; u.urlopen('http://{MLFLOW_ADDRESS}:5000/health', timeout=5)",
        ]
        deadline = time.monotonic() + 180
        while hosts.run(name, ask).returncode != 0:
            assert process.poll() is None, (folder / "mlflow.log").read_text()
            assert time.monotonic() < deadline, (folder / "mlflow.log").read_text()
            time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def done(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stdout


@contextmanager
def disk_of_its_own(patient: Patient) -> Iterator[None]:
    done(patient.hosts.run("n1", ["mount", "-t", "tmpfs", "tmpfs", str(patient.storage)]))
    yield
    done(patient.hosts.run("n1", ["umount", str(patient.storage)]))


@contextmanager
def name_that_leads_to_loopback(patient: Patient) -> Iterator[None]:
    file = patient.hosts.names_file("n1")
    before = file.read_text()
    file.write_text("127.0.1.1 n1\n" + before.replace("10.77.0.11 n1\n", ""))
    yield
    file.write_text(before)


@contextmanager
def no_way_to_mlflow(patient: Patient) -> Iterator[None]:
    done(patient.hosts.run("n1", ["ip", "route", "add", "blackhole", f"{MLFLOW_ADDRESS}/32"]))
    yield
    done(patient.hosts.run("n1", ["ip", "route", "del", "blackhole", f"{MLFLOW_ADDRESS}/32"]))


@contextmanager
def no_way_from_n1_to_n2(patient: Patient) -> Iterator[None]:
    done(patient.hosts.run("n1", ["ip", "route", "add", "blackhole", "10.77.0.12/32"]))
    yield
    done(patient.hosts.run("n1", ["ip", "route", "del", "blackhole", "10.77.0.12/32"]))


@contextmanager
def little_shared_memory(patient: Patient) -> Iterator[None]:
    done(patient.hosts.run("n2", ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"]))
    yield
    done(patient.hosts.run("n2", ["umount", "/dev/shm"]))


@contextmanager
def another_dmlscale(patient: Patient) -> Iterator[None]:
    info = patient.folder / "old" / "dmlscale-0.0.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dmlscale\nVersion: 0.0.9\n")
    with patient.restarted("n2", env={"PYTHONPATH": str(info.parent)}):
        yield


def few_open_files(patient: Patient) -> AbstractContextManager[None]:
    return patient.restarted("n2", prefix=["prlimit", "--nofile=600:600"])


@contextmanager
def wrong_clock(patient: Patient) -> Iterator[None]:
    """That of the host's Python processes: hosts share the kernel and its clock."""
    code = patient.folder / "clock" / "sitecustomize.py"
    code.parent.mkdir()
    code.write_text("import time\nright = time.time\ntime.time = lambda: right() + 100\n")
    with patient.restarted("n2", env={"PYTHONPATH": str(code.parent)}):
        yield


FAULTS: dict[Callable[[Patient], AbstractContextManager[None]], tuple[set[tuple[str, str]], str]] = {
    disk_of_its_own: ({("run.folder", "n1")}, "is not shared: files that n0, n2 wrote are not there"),
    name_that_leads_to_loopback: ({("host name", "n1")}, "n1 resolves to 127.0.1.1"),
    no_way_to_mlflow: ({("mlflow", "n1")}, "cannot be reached"),
    no_way_from_n1_to_n2: ({("collectives", "n1")}, "cannot connect to n2"),
    little_shared_memory: ({("shared memory", "n2")}, "/dev/shm has 0.06 GiB"),
    another_dmlscale: ({("packages", "n2")}, "dmlscale 0.0.9 here, 0.1.0 on n0, n1"),
    few_open_files: ({("open files", "n2")}, "600, at least 4,096 are needed"),
    wrong_clock: ({("clock", "n2")}, "s ahead of n0"),
}


def test_healthy_hosts_pass_and_nothing_is_left_behind(patient: Patient) -> None:
    code, failed, said = patient.examine()
    assert (code, failed) == (0, set()), said
    assert "all 3" in said
    assert list(patient.storage.iterdir()) == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found_and_nothing_else(
    patient: Patient, fault: Callable[[Patient], AbstractContextManager[None]]
) -> None:
    expected, words = FAULTS[fault]
    with fault(patient):
        code, failed, said = patient.examine()
    assert (code, failed) == (1, expected), said
    assert words in " ".join(said.split()), said


def test_a_host_that_is_cut_off_is_named_and_ends_nothing(patient: Patient) -> None:
    """The last test, since Ray gives up a node that it has lost for good."""
    patient.hosts.cut("n1")
    code, failed, said = patient.examine()
    assert code == 1, said
    assert failed == {("node", "n1"), ("resources", "")}, said  # two nodes have no room for three workers
