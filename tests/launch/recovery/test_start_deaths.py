"""What is found out of workers that died before all had started, from a Ray that is really there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDeathCause, OomContext
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from dmlscale.launch.recovery import start_deaths
from dmlscale.launch.recovery.failures import Failure, classify

_PROGRAM = """
import json, os
import ray
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.cluster import ray_cluster
from dmlscale.launch.recovery.start_deaths import answers, dead_workers, failed_start

class RayTrainWorker:
    def __init__(self, what):
        if what == "fails":
            raise FileNotFoundError(2, "No such file", "/data/x.npz")
        self.what = what
    def address(self):
        return ray.util.get_node_ip_address()
    def end(self):
        os._exit(3)

def start(what, method):
    worker = ray.remote(num_cpus=0)(RayTrainWorker).remote(what)
    try:
        return worker, ray.get(getattr(worker, method).remote())
    except ray.exceptions.RayActorError:
        return worker, None

def told():
    failed = failed_start(WorkerGroupStartupFailedError("Ray says no more"), seen)
    seen.update(dead_workers())
    errors = {str(rank): [type(error).__name__, str(error)] for rank, error in failed.errors.items()}
    return {"errors": errors, "again": failed.is_for_start}

with ray_cluster(ResourcesConfig()):
    seen, found = set(), {}
    living, address = start("lives", "address")
    found["answers"] = [answers(address), answers("192.0.2.77")]
    ray.kill(living)  # as Ray does with those that are left
    found["none"] = told()
    start("dies", "end")
    found["died"] = told()
    start("fails", "end")
    found["failed"] = told()
    print(json.dumps(found))
"""


def test_a_crash_is_a_failure_and_an_error_of_the_start_is_not_tried_again() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_memory_monitor_refresh_ms": "0"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answers"] == [True, False]
    assert found["none"] == {"errors": {"-1": ["WorkerGroupStartupFailedError", "Ray says no more"]}, "again": True}
    name, text = found["died"]["errors"]["-1"]
    assert not found["died"]["again"]
    assert "was killed or crashed before all had started; its last words are in Ray's logs on" in text
    assert told_by(name, text).is_worth_a_restart
    name, text = found["failed"]["errors"]["-1"]
    assert not found["failed"]["again"]
    assert text.endswith("No such file: '/data/x.npz'")
    assert "cannot start: FileNotFoundError" in text
    assert not told_by(name, text).is_worth_a_restart


def test_what_a_machine_cannot_import_is_not_tried_again() -> None:
    text = "System error: No module named 'here_only'\ntraceback: Traceback (most recent call last): ..."
    assert not told_by("RaySystemError", text).is_worth_a_restart
    assert told_by("RaySystemError", "System error: the object store is gone").is_worth_a_restart


def told_by(name: str, text: str) -> Failure:
    """What becomes of an error of that class, which is known by its name."""
    return classify({-1: type(name, (RuntimeError,), {})(text)}, {})


def test_a_worker_that_ray_ended_at_its_start_for_want_of_memory_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "Task was killed due to the node running low on memory.\nRefer to the documentation on how to address it."
    entry = {"DeathCause": ActorDeathCause(oom_context=OomContext(error_message=text)), "Pid": 7}
    entry["Address"] = {"NodeID": "a1", "IPAddress": "10.0.0.1"}
    monkeypatch.setattr(start_deaths, "dead_workers", lambda: {"w1": entry})
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "a1", "NodeManagerHostname": "n1"}])
    failed = start_deaths.failed_start(WorkerGroupStartupFailedError("Ray says no more"), set())
    assert not failed.is_for_start
    assert "a worker on n1 cannot start: Task was killed due to the node running low" in str(failed.errors[-1])
    assert classify(failed.errors, {}).is_for_memory


def test_without_a_cluster_no_node_answers() -> None:
    assert not ray.is_initialized()
    assert not start_deaths.answers("127.0.0.1")
