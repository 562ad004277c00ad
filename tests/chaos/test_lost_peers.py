"""A worker that hangs and a network that is cut: noticed in time, named, and nothing is heard of the orphans again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.chaos.observe import ProgressLog
from tests.chaos.same_run import assert_each_step_once, assert_same_checkpoint, assert_same_steps
from tests.chaos.site import Site, left_behind, site_of
from tests.chaos.workload import start_undisturbed
from tests.hosts.network import why_no_hosts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(why_no_hosts() is not None, reason=why_no_hosts() or ""),
]

STEPS = 1000
HEARTBEAT_TIMEOUT_S = 5.0
# For the end of the healthy workers, and for the driver to read what they noted, on a machine that is busy.
SLACK_S = 6.0


def test_a_hung_worker_and_a_cut_network_are_noticed_in_time(tmp_path: Path) -> None:
    site_settings = {"workers": 2, "min_workers": 1, "heartbeat_timeout_s": HEARTBEAT_TIMEOUT_S}
    # No worker beside the driver: so rank 0, which alone writes figures and commits checkpoints, can be cut off.
    with site_of(tmp_path, steps=STEPS, head_cpus=0, **site_settings) as site:
        site.start_driver()
        site.wait_for_step(100, seconds=180)

        rank, host = 1, host_of(site, 1)
        (worker,) = site.workers(host)
        began = time.monotonic()
        worker.suspend()
        hung_s = told_of(site, began, rank, host)
        site.wait_until(lambda: site.progress.attempt >= 2, "training again", seconds=120)
        site.wait_for_step(site.progress.step + 100, seconds=180)

        host, attempt = host_of(site, 0), site.progress.attempt
        (orphan,) = site.workers(host)
        began = time.monotonic()
        site.hosts.cut(host)
        cut_s = told_of(site, began, 0, host)
        site.wait_until(lambda: not orphan.is_running(), "the end of the orphan", seconds=30)
        orphan_s = time.monotonic() - began
        site.wait_until(lambda: site.progress.attempt > attempt, "training on the host that is left", seconds=120)
        alone_s = time.monotonic() - began
        says = f"going on with 1 of 2 workers.*{host}"
        site.wait_until(lambda: bool(site.log.since(began, says)), f"told that {host} is gone", seconds=30)
        print(f"\nhung worker told of after {hung_s:.1f} s, cut network after {cut_s:.1f} s; the orphan ended after")
        print(f"{orphan_s:.1f} s, training went on after {alone_s:.1f} s", flush=True)
        site.hosts.heal(host)
        site.ray.rejoin(host)
        assert site.wait_for_end(seconds=480) == 0, site.ending()

        folder, end = start_undisturbed(site.config_file, "alone", f"train.checkpoint_folder={tmp_path / 'alone'}")
        end.result(200)
        alone = ProgressLog(folder / "progress.jsonl")
        alone.look()
        assert_same_steps(site.progress.steps(), alone.steps(), STEPS)
        assert_same_checkpoint(site.disk.path / site.run_name, tmp_path / "alone" / "alone")
        assert_each_step_once(site.store, alone.steps())
        assert "Traceback" not in site.log.text()
    assert left_behind(tmp_path) == []


def told_of(site: Site, since: float, rank: int, host: str) -> float:
    """Seconds until the output names the rank, its host and the step."""
    says = rf"^fault: .*rank {rank}\b.*\b{host}\b.*step \d+"
    site.wait_until(lambda: bool(site.log.since(since, says)), f"told of rank {rank} on {host}", seconds=90)
    seconds = site.log.since(since, says)[0].at - since
    assert seconds < HEARTBEAT_TIMEOUT_S + SLACK_S, site.ending()
    return seconds


def host_of(site: Site, rank: int) -> str:
    """Where a rank of the newest start of the workers runs."""
    newest = max((site.folder / "ray").glob("attempt-*"))
    return str(json.loads((newest / f"rank_{rank}.json").read_text())["host"])
