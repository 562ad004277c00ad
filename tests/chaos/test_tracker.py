from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.chaos.processes import on_host
from tests.chaos.site import left_behind
from tests.chaos.tracker import TrackerOnHost
from tests.hosts.network import Hosts, why_no_hosts

pytestmark = pytest.mark.skipif(why_no_hosts() is not None, reason=str(why_no_hosts()))


def test_nothing_is_left_of_a_server_that_was_frozen_and_killed(tmp_path: Path) -> None:
    with Hosts(1, tmp_path) as hosts:
        tracker = TrackerOnHost(hosts, "n0", tmp_path / "mlflow")
        tracker.start()
        tracker.freeze()
        deadline = time.monotonic() + 10
        while {process.status() for process in on_host(hosts, "n0", "mlflow server")} != {"stopped"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        tracker.thaw()
        tracker.kill()
    assert left_behind(tmp_path) == []
