"""A cluster that a command starts for itself is for that command alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

# In a process of its own: what Ray reads of the environment it reads once. It is imported first, as by `dmlscale tune`.
OWNER = """
import os, subprocess, sys, time
from contextlib import suppress
import psutil, ray
from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.cluster import ray_cluster

with ray_cluster(ResourcesConfig(), with_dashboard=True):
    worker = ray.remote(lambda: (os.environ.get("GLOO_SOCKET_IFNAME"), ray.util.get_node_ip_address()))
    print("worker", *ray.get(worker.remote()))
    address, token = ray.get_runtime_context().gcs_address, os.environ["RAY_AUTH_TOKEN"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    with_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    wrong = with_token | {"RAY_AUTH_TOKEN": "0" * 64}
    for name, more in {"stranger": {}, "guesser": wrong, "owner": with_token}.items():
        subprocess.run([sys.executable, "-c", sys.argv[1], name, address], env=plain | more, timeout=60)
    me = psutil.Process()
    listens, deadline = set(), time.monotonic() + 60
    while time.monotonic() < deadline and not set(sys.argv[2:]) <= {name for _, name in listens}:
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it has just ended
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        listens.add((connection.laddr.ip, process.name()))
    for ip, name in listens:
        print("listens", ip, name)
print("token", token)
print("left", *(name for name in os.environ if "RAY_AUTH" in name or "SOCKET_IFNAME" in name or "RAY_GCS" in name))
"""
VISITOR = """
import sys
from ray._raylet import GcsClient
try:
    print(sys.argv[1], "sees", len(GcsClient(address=sys.argv[2]).get_all_node_info(timeout=10)), "node", flush=True)
except Exception as error:
    print(sys.argv[1], type(error).__name__, flush=True)
"""


def test_nothing_listens_outside_of_loopback_and_others_are_refused(tmp_path: Path) -> None:
    settings = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "RAY_memory_monitor_refresh_ms": "0"}
    expected = ("gcs_server", "raylet", "ray::DashboardAgent")
    command = [sys.executable, "-u", "-c", OWNER, VISITOR, *expected]
    with tempfile.TemporaryDirectory() as folder:  # a short path: names of sockets have few characters
        # As `ray start` leaves it: a cluster of somebody else on this machine, which is not to be used.
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        settings["RAY_TMPDIR"] = folder
        done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert ["worker", "lo", "127.0.0.1"] in told
    assert ["stranger", "AuthenticationError"] in told
    assert ["guesser", "AuthenticationError"] in told
    assert ["owner", "sees", "1", "node"] in told
    listening = {(process, ip.removeprefix("::ffff:")) for kind, ip, process in (t for t in told if t[0] == "listens")}
    assert set(expected) <= {process for process, _ in listening}
    assert {ip for _, ip in listening} == {"127.0.0.1"}
    # They would keep the process from entering another cluster, or its collectives from leaving this machine.
    assert ["left"] in told
    (token,) = (values[1] for values in told if values[0] == "token")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()] == []
