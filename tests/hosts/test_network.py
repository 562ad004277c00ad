"""The hosts themselves: are they as separate as a test that uses them believes?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.network import Hosts, why_no_hosts

pytestmark = pytest.mark.skipif(why_no_hosts() is not None, reason=str(why_no_hosts()))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(2, tmp_path_factory.mktemp("net")) as made:
        yield made


def ping(hosts: Hosts, source: str, target: str, *, seconds: float) -> bool:
    script = (
        "import socket,sys\n"
        "s=socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[2])); s.shutdown(1)\n"
        "sys.exit(s.recv(1) != b'x')"
    )
    return hosts.run(source, ["python3", "-c", script, hosts.address(target), str(seconds)]).returncode == 0


@pytest.fixture(scope="module")
def sink(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    script = (
        "import socketserver\n"
        "class Sink(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        while self.request.recv(65536): pass\n"
        "        self.request.sendall(b'x')\n"
        "socketserver.TCPServer(('0.0.0.0', 7000), Sink).serve_forever()"
    )
    process = hosts.start("n1", ["python3", "-c", script], log=tmp_path_factory.mktemp("log") / "sink.log")
    deadline = time.monotonic() + 60
    while not ping(hosts, "n0", "n1", seconds=10):
        assert time.monotonic() < deadline
    yield
    process.terminate()
    process.wait()


def test_each_has_its_own_name_home_and_memory(hosts: Hosts) -> None:
    for name in hosts.names:
        assert hosts.run(name, ["hostname"]).stdout.strip() == name
        assert hosts.run(name, ["sh", "-c", "echo $HOME"]).stdout.strip() == str(hosts.home(name))
        hosts.run(name, ["touch", f"/dev/shm/{name}", f"/tmp/ray/{name}"])
    assert hosts.run("n1", ["ls", "/dev/shm", "/tmp/ray"]).stdout.split() == ["/dev/shm:", "n1", "/tmp/ray:", "n1"]
    assert not Path("/dev/shm/n1").exists()
    assert "n0" in hosts.run("n1", ["getent", "hosts", "n0"]).stdout


def test_processes_of_others_are_not_seen(hosts: Hosts) -> None:
    numbers = [int(entry) for entry in hosts.run("n0", ["ls", "/proc"]).stdout.split() if entry.isdigit()]
    assert os.getpid() not in numbers
    assert len(numbers) < 10


@pytest.mark.usefixtures("sink")
def test_a_cable_can_be_pulled(hosts: Hosts) -> None:
    hosts.cut("n1")
    assert not ping(hosts, "n0", "n1", seconds=1)
    hosts.heal("n1")
    assert ping(hosts, "n0", "n1", seconds=30)


@pytest.mark.usefixtures("sink")
def test_a_link_can_be_slow(hosts: Hosts) -> None:
    hosts.slow("n1", mbit=16)
    slowed = seconds_to_send(hosts, 1_000_000)
    hosts.full_speed("n1")
    assert slowed > 0.4  # of the 0.5 that 8 Mbit take
    # Once of many times, since a busy machine takes longer by itself; a slow link never is as fast.
    assert any(seconds_to_send(hosts, 1_000_000) < 0.2 for _ in range(50))


def seconds_to_send(hosts: Hosts, num_bytes: int) -> float:
    script = (
        "import socket,sys,time\n"
        "b=time.monotonic(); s=socket.create_connection((sys.argv[1], 7000))\n"
        "s.sendall(bytes(int(sys.argv[2]))); s.shutdown(1); s.recv(1); print(time.monotonic()-b)"
    )
    return float(hosts.run("n0", ["python3", "-c", script, hosts.address("n1"), str(num_bytes)]).stdout)


def test_a_command_ends_with_what_was_returned_for_it(hosts: Hosts) -> None:
    process = hosts.start("n0", ["sleep", "1234"], log=Path(os.devnull))
    deadline = time.monotonic() + 60
    while not (there := hosts.run("n0", ["pgrep", "-x", "sleep", "-a"]).stdout).count("sleep 1234"):
        assert time.monotonic() < deadline, there
    process.terminate()
    assert process.wait(30) != 0
    while "sleep 1234" in hosts.run("n0", ["pgrep", "-x", "sleep", "-a"]).stdout:
        assert time.monotonic() < deadline


def test_power_off_and_on(tmp_path: Path) -> None:
    with Hosts(2, tmp_path) as hosts:
        process = hosts.start("n1", ["sleep", "100"], log=tmp_path / "log")
        hosts.run("n1", ["touch", str(hosts.home("n1") / "kept")])
        hosts.power_off("n1")
        assert process.wait(30) != 0
        hosts.power_on("n1")
        assert hosts.run("n1", ["ls", str(hosts.home("n1"))]).stdout.strip() == "kept"
