from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from dmlscale.launch.doctor.limits import judge_limits
from dmlscale.launch.doctor.machines import Machine

NODE = Machine("n0")
GOOD: dict[str, Any] = {
    "open_files": 65536,
    "processes": -1,
    "shared_memory": 8 * 2**30,
    "memory_available": 16 * 2**30,
    "memory_total": 32 * 2**30,
    "is_root": False,
}


def statuses(limits: dict[str, int] | None = None, machine: Machine = NODE) -> dict[str, str]:
    return {f.check: f.status for f in judge_limits(machine, GOOD | (limits or {}))}


def test_a_good_machine_passes() -> None:
    assert set(statuses().values()) == {"ok"}


@pytest.mark.parametrize(
    ("key", "check", "few", "too_few"),
    [
        ("open_files", "open files", 4095, 1023),
        ("processes", "processes", 4095, 511),
        ("shared_memory", "shared memory", 2**30 - 1, 64 * 2**20),
    ],
)
def test_little_is_a_warning_and_less_a_failure(key: str, check: str, few: int, too_few: int) -> None:
    assert statuses({key: few})[check] == "warn"
    assert statuses({key: too_few})[check] == "fail"
    bad = [name for name, status in statuses({key: too_few}).items() if status != "ok"]
    assert bad == [check]


def test_a_large_object_store_needs_more_shared_memory() -> None:
    machine = Machine("n0", resources={"object_store_memory": 30e9})
    assert statuses(machine=machine)["shared memory"] == "warn"
    assert statuses({"shared_memory": 10**10}, machine)["shared memory"] == "ok"


def test_the_limit_of_processes_does_not_bind_root() -> None:
    assert "processes" not in statuses({"processes": 100, "is_root": True})


def test_limits_are_those_of_the_process_itself() -> None:
    script = (
        "import json, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (777, 777));"
        "from dmlscale.launch.doctor.limits import look_at_limits; print(json.dumps(look_at_limits()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["open_files"] == 777
    assert facts["memory_total"] > facts["memory_available"] > 0
    assert facts["shared_memory"] > 0
