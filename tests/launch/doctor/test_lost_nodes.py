"""After how long a node that is cut off is noticed."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from dmlscale.launch.doctor.lost_nodes import check_lost_nodes, judge_lost_nodes, settings_of_head
from tests.launch.doctor.machines import RoomsOfOne


@pytest.mark.parametrize(
    ("settings", "status", "seconds"),
    [
        ({}, "warn", "65 s"),
        ({"RAY_health_check_period_ms": "3000", "RAY_health_check_failure_threshold": "3"}, "ok", "39 s"),
        ({"RAY_health_check_timeout_ms": "5000", "RAY_health_check_failure_threshold": "3"}, "ok", "24 s"),
        ({"RAY_health_check_failure_threshold": "10"}, "warn", "130 s"),
    ],
)
def test_what_is_said(settings: dict[str, str], status: str, seconds: str) -> None:
    finding = judge_lost_nodes("n0", settings)
    assert (finding.node, finding.status) == ("n0", status)
    assert finding.what == f"a node that is cut off is noticed after {seconds}"
    assert ("RAY_health_check_timeout_ms=5000" in finding.advice) == (status == "warn")


def test_a_single_machine_is_not_asked() -> None:
    assert check_lost_nodes(RoomsOfOne(["n0"], silent=["n0"])) == []


def test_the_settings_are_those_of_the_running_head(tmp_path: Path) -> None:
    """Whatever other clusters this machine has."""
    program = tmp_path / "gcs_server"
    program.symlink_to(shutil.which("bash") or "")
    port = str(70_000 + os.getpid())  # which no other has
    environment = {"RAY_health_check_period_ms": "7", "OTHER": "1"}
    words = [str(program), "-c", "read; :", "head", f"--gcs_server_port={port}"]
    with subprocess.Popen(words, env=environment, stdin=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 60
            while (found := settings_of_head(port)) is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert found == {"RAY_health_check_period_ms": "7"}
        finally:
            process.kill()
