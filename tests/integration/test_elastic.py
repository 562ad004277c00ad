"""More and fewer workers in one run: by command, by the nodes that come and go, and by notice of one that will go."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dmlscale.cli import main
from dmlscale.launch.recovery.attempt import last_attempt
from dmlscale.training.checkpoint import latest
from tests.distributed.pool import GlooPool
from tests.hosts.network import Hosts, why_no_hosts
from tests.hosts.ray_cluster import RayOnHosts
from tests.integration.runs import BESIDE_OTHERS, batches, curve, task_of, work_on_rank

HOOK = Path(__file__).parents[2] / "jobs" / "kuberay" / "save_before_stop.sh"


def whole_tensors(run: str | Path) -> dict[str, Tensor]:
    """All tensors of a run's newest checkpoint, put together from what the ranks wrote."""
    folder = latest(Path(run) / "checkpoints")
    assert folder is not None
    found: dict[str, Tensor] = {}
    for file in json.loads((folder / "record.json").read_text())["files"]:
        with safe_open(folder / file["name"], framework="pt") as opened:
            for piece in file["pieces"]:
                part = opened.get_tensor(piece["name"])
                whole = found.setdefault(piece["name"], torch.zeros(piece["shape"], dtype=part.dtype))
                box = tuple(slice(o, o + s) for o, s in zip(piece["offsets"], piece["sizes"], strict=True))
                whole[box] = part
    return found


def assert_the_same_run(one: str | Path, other: str | Path) -> None:
    """The same samples and the same losses at each step, and the same bits at the end."""
    assert batches(one) == batches(other)
    assert curve(one) == curve(other)
    here, there = whole_tensors(one), whole_tensors(other)
    assert here.keys() == there.keys()
    assert [name for name in here if not torch.equal(here[name], there[name])] == []


def test_four_workers_then_two_then_three_by_command(gloo_pool: GlooPool, config_file: Path) -> None:
    whole = task_of(config_file, "whole")
    gloo_pool.run(1, work_on_rank, whole)

    parts = task_of(config_file, "parts")
    steps: list[int] = []
    for num_ranks, stops in ((4, True), (2, True), (3, False)):
        parts.stop_file.unlink(missing_ok=True)
        if stops:
            parts.stop_file.touch()
        result = gloo_pool.run(num_ranks, work_on_rank, parts)[0]
        assert result["stopped"] == stops
        assert result["started_at_step"] == (steps[-1] if steps else 0)
        steps.append(result["step"])
    assert 0 < steps[0] < steps[1] < steps[2] == 20
    assert_the_same_run(parts.folder, whole.folder)
    assert any("bank" in name or "objective" in name for name in whole_tensors(parts.folder))


def test_what_an_earlier_driver_asked_for_is_void(config_file: Path, tmp_path: Path) -> None:
    """It was killed before it could take its requests back."""
    folder = tmp_path / "runs" / "again"
    folder.mkdir(parents=True)
    for request in ("stop-requested", "hand-over-requested"):
        (folder / request).touch()
    quick = ["train.steps=12", "evaluation.raw_pixels=false", "train.bank_start=random"]
    assert main(["train", str(config_file), "--local", "run.name=again", *quick]) == 0
    assert max(curve(folder)) == 12


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_ray_workers_then_two_then_three(gloo_pool: GlooPool, config_file: Path, tmp_path: Path) -> None:
    """Each time the same command with another number of workers, which is asked to stop after some steps."""
    run, log = tmp_path / "runs" / "ray", tmp_path / "ray.log"
    same = ("optim.schedule=constant",)
    command = [sys.executable, "-m", "dmlscale.cli", "train", str(config_file), "run.name=ray", *same]
    command += ["train.steps=100000", "resources.cpus_per_worker=0.5"]
    environment = os.environ | BESIDE_OTHERS
    for attempt, workers in enumerate((4, 2, 3), start=1):
        with log.open("ab") as file:
            words = [*command, f"resources.workers={workers}"]
            process = subprocess.Popen(words, stdout=file, stderr=file, env=environment)
        until(partial(has_worked, run, attempt, steps=3), process, log, 240)
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 75, log.read_text()
        assert len(last_attempt(run / "attempts")[1]) == workers
    assert log.read_text().count("continuing run ray at step") == 2
    alone = task_of(config_file, "alone", *same, f"train.steps={max(curve(run))}")
    gloo_pool.run(1, work_on_rank, alone)
    assert_the_same_run(run, alone.folder)


def has_worked(run: Path, attempt: int, *, steps: int) -> bool:
    """Whether a start of the workers has done so many steps."""
    try:
        lines = (run / "progress.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return False
    entries = [json.loads(line) for line in lines if line.endswith("\n")]  # one may just be being written
    return sum("metrics" in entry and entry["attempt"] == attempt for entry in entries) >= steps


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float) -> float:
    """Waits; returns how long, in seconds."""
    start = time.monotonic()
    while not holds():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() - start < seconds, log.read_text()
        time.sleep(0.1)
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(why_no_hosts() is not None, reason=why_no_hosts() or "")
def test_nodes_that_go_come_and_give_notice(gloo_pool: GlooPool, config_file: Path, tmp_path: Path) -> None:
    """Three workers; n2 is switched off, comes back, and n1 says that it will go: one run, as if nothing had been."""
    run, log = tmp_path / "runs" / "elastic", tmp_path / "elastic.log"
    same = ("optim.schedule=constant", "train.checkpoint_every=20")
    lowered = {"period_ms": "1000", "timeout_ms": "2000", "failure_threshold": "3"}
    env = {f"RAY_health_check_{key}": value for key, value in lowered.items()}
    command = [sys.executable, "-m", "dmlscale.cli", "train", str(config_file), "run.name=elastic", *same]
    command += ["resources.workers=3", "resources.min_workers=2", "resources.address=auto"]
    command += ["train.steps=100000"]

    def at_work(number: int, *hosts: str) -> bool:
        """Whether a start of the workers, on these hosts, has done a step."""
        newest, there = last_attempt(run / "attempts")
        return newest >= number and sorted(there) == sorted(hosts) and has_worked(run, newest, steps=1)

    took = {}
    with Hosts(3, tmp_path) as hosts, RayOnHosts(hosts, cpus=1, env=env) as cluster:
        process = cluster.start("n0", command, log=log)
        took["first step"] = until(lambda: at_work(1, "n0", "n1", "n2"), process, log, 240)
        until(lambda: latest(run / "checkpoints") is not None, process, log, 240)
        hosts.power_off("n2")
        took["step with 2 after n2 was switched off"] = until(lambda: at_work(2, "n0", "n1"), process, log, 240)
        hosts.power_on("n2")
        cluster.join("n2")
        joined_at = last_attempt(run / "attempts")[0]
        took["step with 3 after n2 has joined"] = until(lambda: at_work(joined_at, "n0", "n1", "n2"), process, log, 240)
        # What a pod of workers does before it stops; it returns when none of them is left on n1.
        hook = cluster.run("n1", ["bash", str(HOOK), str(run), "60"], timeout=90)
        assert (hook.returncode, hook.stdout) == (0, "")
        assert not (run / "stop-requested").exists()
        took["step with 2 after the notice"] = until(lambda: at_work(1, "n0", "n2"), process, log, 240)
        until(lambda: "without n1" in log.read_text(), process, log, 60)
        pid = json.loads((run / "driver.json").read_text())["pid"]
        assert hosts.run("n0", ["kill", "-TERM", str(pid)]).returncode == 0
        assert process.wait(240) == 75, log.read_text()
    print(*(f"{what}: {seconds:.1f} s" for what, seconds in took.items()), sep="\n")

    text = log.read_text()
    print(text)
    for line in (
        r"going on with 2 of 3 workers, without n2",
        r"there is room for 3 workers: saving a checkpoint, to go on with them",
        r"3 workers again",
        r"notice: n1 will be taken away in \d+ s: saving a checkpoint, to go on elsewhere",
        r"going on with 2 of 3 workers, without n1",
    ):
        assert re.search(rf"^{line}$", text, re.MULTILINE), text
    assert "Traceback" not in text

    alone = task_of(config_file, "alone", *same, f"train.steps={max(curve(run))}")
    gloo_pool.run(1, work_on_rank, alone)
    assert_the_same_run(run, alone.folder)
