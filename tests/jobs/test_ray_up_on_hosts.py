"""`ray up jobs/ray_up.yaml` for real: two hosts that a third reaches by ssh, and a job on the cluster that it makes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.hosts.network import Hosts, why_no_hosts
from tests.jobs.files import JOBS

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
MISSING = [name for name, there in (("sshd", SSHD), ("rsync", shutil.which("rsync"))) if there is None]
REASON = why_no_hosts() or f"{' and '.join(MISSING)} missing"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(why_no_hosts() is not None or bool(MISSING), reason=REASON),
]
BIN = Path(sys.executable).parent
NODES, USER = ("n0", "n1"), "n2"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Machines with an ssh server, homes of their own and the environment where setup would install it."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    # The server gives its children a folder of root's to be locked into.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    options = [f"AuthorizedKeysFile={key}.pub", "StrictModes=no", "UsePAM=no", "PidFile=none"]
    with Hosts(len(NODES) + 1, tmp_path) as made:
        for node in made.names:
            give_home(made, node, tmp_path)
        for node in NODES:
            command = [str(SSHD), "-D", "-e", "-h", str(key), *(word for option in options for word in ("-o", option))]
            made.start(node, command, log=tmp_path / f"sshd-{node}")
        yield made


def give_home(hosts: Hosts, node: str, folder: Path) -> None:
    """Who signs in is at home on this machine alone, and finds the environment there."""
    users = Path("/etc/passwd").read_text().splitlines()
    (folder / f"passwd-{node}").write_text("\n".join([f"root:x:0:0::{hosts.home(node)}:/bin/bash", *users[1:]]) + "\n")
    assert hosts.run(node, ["mount", "--bind", f"{folder / f'passwd-{node}'}", "/etc/passwd"]).returncode == 0
    (hosts.home(node) / "dmlscale").mkdir(parents=True)
    (hosts.home(node) / "dmlscale" / ".venv").symlink_to(BIN.parent)
    settings = hosts.home(node) / ".config" / "dmlscale.env"
    settings.parent.mkdir()
    settings.write_text("RAY_memory_monitor_refresh_ms=0\nOMP_NUM_THREADS=1\n")  # the tests' machine has other work


def cluster_file(hosts: Hosts, folder: Path) -> Path:
    """Ours, with these machines, and without the installation, for which they would need the internet."""
    text = (JOBS / "ray_up.yaml").read_text()
    for number in range(3):
        text = text.replace(f"192.0.2.1{number}", f"10.77.0.1{number}")
    for ours, here in {
        ", 10.77.0.12]": "]",
        "ssh_user: ubuntu": "ssh_user: root",
        "~/.ssh/id_ed25519": str(folder / "key"),
        "http://10.77.0.10:5000": f"sqlite:///{folder}/mlflow.db",
        '.venv/bin/python -m pip install --quiet --constraint constraints.txt ".[gpu]"': "test -e dmlscale/__init__.py",
    }.items():
        assert ours in text
        text = text.replace(ours, here)
    path = folder / "ray_up.yaml"
    path.write_text(text)
    return path


def try_to_run(hosts: Hosts, *command: str | Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"}
    return hosts.run(USER, [*map(str, command)], env=environment, timeout=timeout)


def run(hosts: Hosts, *command: str | Path, timeout: float = 200) -> None:
    done = try_to_run(hosts, *command, timeout=timeout)
    assert done.returncode == 0, done.stdout


def test_ray_up_makes_a_cluster_that_takes_jobs(hosts: Hosts, tmp_path: Path) -> None:
    file = cluster_file(hosts, tmp_path)
    run(hosts, "ray", "get-auth-token", "--generate")
    run(hosts, "ray", "up", "--yes", "--no-config-cache", "--disable-usage-stats", file)
    # It fails as long as the dashboard of a cluster that has just begun does not answer.
    wait_until(lambda: is_alive(hosts.address("n1"), try_to_run(hosts, "ray", "exec", file, "ray list nodes").stdout))
    for node in NODES:
        token = hosts.home(node) / ".ray" / "auth_token"
        assert token.stat().st_mode & 0o777 == 0o600
    without = hosts.run(USER, ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", JOBS_URL])
    assert without.stdout == "401"

    run(hosts, *SUBMIT, "--shared", tmp_path / "shared", timeout=400)
    assert (tmp_path / "shared" / "runs" / "first" / "config.yaml").exists()
    run(hosts, "ray", "down", "--yes", file)
    for node in NODES:
        wait_until(partial(no_ray_on, hosts, node))


JOBS_URL = "http://10.77.0.10:8265/api/jobs/"
SUBMIT = (
    *(sys.executable, "-m", "dmlscale.cli", "submit", "train", "configs/quickstart.yaml"),
    *("--address", "http://10.77.0.10:8265", "--env", "OMP_NUM_THREADS=1"),
    *(
        "run.name=first",
        "data.source.limit_classes=60",
        "train.steps=4",
        "train.eval_every=0",
        "evaluation.report=false",
    ),
    *("resources.workers=2", "tracking.registered_model=null"),
)


def is_alive(address: str, listing: str) -> bool:
    """Whether Ray lists the node so; what is said of the connection names addresses too."""
    return any(address in line and "ALIVE" in line for line in listing.splitlines())


def no_ray_on(hosts: Hosts, node: str) -> bool:
    return hosts.run(node, ["pgrep", "raylet"]).returncode == 1


def wait_until(condition: Callable[[], bool], seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(3)
