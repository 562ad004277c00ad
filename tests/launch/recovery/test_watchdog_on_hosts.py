"""A network that is cut between two machines, which neither gloo nor a process group's store notices."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from dmlscale.launch.recovery.watchdog import EXIT_BY_WATCHDOG
from tests.hosts.network import Hosts, why_no_hosts

pytestmark = pytest.mark.skipif(why_no_hosts() is not None, reason=str(why_no_hosts()))

TIMEOUT_S = 3.0


def test_both_sides_of_a_cut_network_end_in_time_and_name_the_other(tmp_path: Path) -> None:
    with Hosts(2, tmp_path) as hosts:
        # As Ray sets it; gloo finds its own address by the name of the host.
        env = {"MASTER_ADDR": hosts.address("n0"), "OMP_NUM_THREADS": "1"}
        processes = [
            hosts.start(
                name,
                [sys.executable, "-m", "tests.launch.recovery.watched", str(rank), "2", str(tmp_path), str(TIMEOUT_S)],
                log=tmp_path / f"{name}.log",
                env=env,
            )
            for rank, name in enumerate(hosts.names)
        ]
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"training.{rank}").exists() for rank in range(2)):
            assert time.monotonic() < deadline, "".join((tmp_path / f"{n}.log").read_text() for n in hosts.names)
            time.sleep(0.05)
        hosts.cut("n1")
        started = time.monotonic()
        codes = [process.wait(timeout=30) for process in processes]
        seconds = time.monotonic() - started
    assert codes == [EXIT_BY_WATCHDOG] * 2
    assert seconds < TIMEOUT_S + 3  # on a machine that is busy with other tests
    notes = [json.loads((tmp_path / "attempts" / f"000001.rank_{rank}.json").read_text()) for rank in range(2)]
    assert [note["suspects"] for note in notes] == [[1], [0]]
    assert notes[0]["message"].startswith("rank 1 (n1, pid ")
    assert notes[1]["message"].startswith("rank 0 (n0, pid ")
    assert "the network between it and rank 1 (n1, pid " in notes[1]["message"]
