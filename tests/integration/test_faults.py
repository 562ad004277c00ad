"""Faults of a run on Ray workers of this machine: what is killed comes back with the same bits, the rest is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.distributed.pool import GlooPool
from tests.integration.runs import BESIDE_OTHERS, batches, curve, task_of, work_on_rank

SHARED = ("resources.cpus_per_worker=0.5", "resources.workers=2", "evaluation.raw_pixels=false")
STEPS = ("train.steps=400", "train.checkpoint_every=20")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Command:
    """A training in a process of its own, whose output can be read while it runs."""

    def __init__(self, config_file: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "dmlscale.cli", "train", str(config_file), *SHARED, *arguments]
        environment = os.environ | BESIDE_OTHERS
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def wait_for(self, condition: Callable[[], object], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.05)

    def end(self, seconds: float = 240) -> int:
        code = self.process.wait(timeout=seconds)
        self._reader.join(10)
        return code

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def faults(self) -> list[str]:
        """Those of lost workers; on a busy machine some are told to be slow as well."""
        return [line for line in self.lines if line.startswith("fault: ") and "(failure " in line]

    def workers(self) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children(recursive=True) if _is_worker(p)]


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def num_checkpoints(folder: Path) -> int:
    return len(list(folder.glob("checkpoints/step_*/record.json")))


def state_of(folder: Path) -> str:
    return str(json.loads((folder / "state.json").read_text())["name"])


def test_a_killed_worker_is_one_line_and_nothing_else_is_lost(
    gloo_pool: GlooPool, config_file: Path, tmp_path: Path
) -> None:
    alone = task_of(config_file, "alone", *STEPS)
    gloo_pool.run(1, work_on_rank, alone)
    folder = tmp_path / "runs" / "hurt"
    command = Command(config_file, "run.name=hurt", *STEPS)
    command.wait_for(lambda: num_checkpoints(folder) >= 2)
    os.kill(command.workers()[-1].pid, signal.SIGKILL)
    killed = time.monotonic()
    command.wait_for(lambda: command.faults)
    command.wait_for(lambda: any("continuing at step" in line for line in command.lines))
    print(f"{time.monotonic() - killed:.1f} s from the kill to the checkpoint being loaded")
    assert command.end() == 0, command.output
    (line,) = command.faults
    assert " was killed (SIGKILL?) at step " in line
    assert "starting again from step " in line
    assert line.endswith("(failure 1 of 3)")
    assert "Traceback" not in command.output
    assert batches(folder) == batches(alone.folder)
    assert curve(folder) == curve(alone.folder)
    assert state_of(folder) == "finished"
    (entry,) = [json.loads(text) for text in (folder / "faults.jsonl").read_text().splitlines()]
    assert f"fault: {entry['message']}" == line


def test_the_same_command_goes_on_after_its_driver_was_killed(
    gloo_pool: GlooPool, config_file: Path, tmp_path: Path
) -> None:
    alone = task_of(config_file, "alone", *STEPS)
    gloo_pool.run(1, work_on_rank, alone)
    folder = tmp_path / "runs" / "driven"
    first = Command(config_file, "run.name=driven", *STEPS)
    first.wait_for(lambda: num_checkpoints(folder) >= 2)
    at_work = first.workers()
    for worker in at_work:
        worker.suspend()  # or they might be at the end before the second command looks
    second = Command(config_file, "run.name=driven", *STEPS)  # while the first is there
    assert second.end() == 2, second.output
    assert "driven is being trained by process" in second.output
    assert first.process.poll() is None
    first.process.kill()
    for worker in at_work:
        with suppress(psutil.NoSuchProcess):
            worker.resume()
    first.end()
    assert state_of(folder) == "training"
    again = Command(config_file, "run.name=driven", *STEPS)
    assert again.end() == 0, again.output
    assert "continuing run driven at step " in again.output
    assert "(it was not finished)" in again.output
    assert batches(folder) == batches(alone.folder)
    assert curve(folder) == curve(alone.folder)
    finished = Command(config_file, "run.name=driven", *STEPS)
    assert finished.end() == 2, finished.output
    assert "finished at step 400: choose another run.name" in finished.output


def test_an_error_of_the_data_is_not_tried_again(config_file: Path, glyphs: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(glyphs, tmp_path / "copy"))
    folder = tmp_path / "runs" / "broken"
    command = Command(config_file, "run.name=broken", f"data.path={copy}", *STEPS)
    command.wait_for(lambda: num_checkpoints(folder) >= 1)
    for shard in copy.glob("test-*.tar"):  # read for the evaluation at the end
        os.truncate(shard, 0)
    assert command.end() == 1, command.output
    assert not command.faults
    assert "DataError: " in command.output or "LostSampleError: " in command.output
    assert len(list((folder / "ray").glob("attempt-*"))) == 1
    assert state_of(folder) == "failed"


def test_a_stop_while_the_workers_start_again_ends_at_once(config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "stopped"
    command = Command(config_file, "run.name=stopped", "train.steps=100000", "train.checkpoint_every=20")
    command.wait_for(lambda: num_checkpoints(folder) >= 1)
    os.kill(command.workers()[0].pid, signal.SIGKILL)
    command.wait_for(lambda: command.faults)
    asked = time.monotonic()
    command.process.send_signal(signal.SIGTERM)
    assert command.end(40) == 75, command.output
    assert time.monotonic() - asked < 30
    assert command.output.endswith("to go on, the same command with\n    run.name=stopped")
    assert state_of(folder) == "stopped"
