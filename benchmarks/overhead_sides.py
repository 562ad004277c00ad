"""The sides of the overhead benchmark: trainings in processes of their own that run in turns."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmlscale.tracking.spools import num_undelivered

NEVER = 10**6
DATABASE = "mlflow.db"
CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


@dataclass(frozen=True)
class Side:
    """What a training does beside training.

    Args:
        saves: whether it writes checkpoints.
        tracks: whether it has an MLflow run, in sqlite unless there is a server.
    """

    saves: bool = False
    tracks: bool = False

    def overrides(self, steps: int) -> list[str]:
        """Of the config; a checkpoint after so many steps."""
        return [
            f"train.checkpoint_every={steps if self.saves else NEVER}",
        ]


NEITHER = "neither"
SIDES: Mapping[str, Side] = {
    NEITHER: Side(),
    "checkpoints": Side(saves=True),
    "tracking": Side(tracks=True),
    "both": Side(saves=True, tracks=True),
}


@dataclass(frozen=True)
class Setting:
    """How long it is measured, and on what.

    Args:
        rounds: that count.
        steps: between two checkpoints.
        checkpoints: of a turn. The longer it is, the less it matters that what happens each few seconds happens at
            the beginning of each turn.
        overrides: of the config.
        tracking_uri: a server; None: sqlite in the run's folder.
        device: "cpu" or "gpu".
    """

    rounds: int = 12
    steps: int = 50  # two seconds here; the quickstart itself saves each 250
    checkpoints: int = 3
    overrides: tuple[str, ...] = ()
    tracking_uri: str | None = None
    device: str = "cpu"

    @property
    def steps_of_turn(self) -> int:
        """From the middle between two checkpoints to the middle between two others."""
        return self.steps * self.checkpoints


SMALL_NETWORK = ("model.options={channels: [8, 8, 16, 16], stem_width: 8, norm_layer: groupnorm1}",)
SMALL = Setting(rounds=3, steps=10, checkpoints=1, overrides=("data.classes_per_batch=8", *SMALL_NETWORK))


class Turns:
    """A training in a process of its own, which runs when it is its turn.

    Args:
        name: of the side.
        setting: of the benchmark.
        folder: for its run.
    """

    def __init__(self, name: str, setting: Setting, folder: Path) -> None:
        self._folder = folder
        uri = [] if setting.tracking_uri is None else ["--tracking-uri", setting.tracking_uri]
        own = [
            "--side",
            name,
            "--steps",
            str(setting.steps),
            "--checkpoints",
            str(setting.checkpoints),
            "--folder",
            str(folder),
            "--device",
            setting.device,
            *uri,
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.overhead", *own, "--overrides", *setting.overrides],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._hold()

    def take(self) -> tuple[float, float]:
        """Runs for one round; (wall, CPU) seconds of it."""
        os.killpg(self._process.pid, signal.SIGCONT)
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._hold()

    def settle(self, most_s: float = 60.0) -> None:
        """Lets it send what it has recorded, while it waits for its next turn; for so many seconds at most."""
        os.killpg(self._process.pid, signal.SIGCONT)
        until = time.monotonic() + most_s
        while num_undelivered(self._folder / "run") and time.monotonic() < until:
            time.sleep(0.1)
        os.killpg(self._process.pid, signal.SIGSTOP)

    def end(self) -> None:
        """Kills it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()

    def _hold(self) -> tuple[float, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("round "):
                os.killpg(self._process.pid, signal.SIGSTOP)
                _, wall_s, cpu_s = line.split()
                return float(wall_s), float(cpu_s)
        raise RuntimeError(f"the training ended with {self._process.wait()} in the middle of a round")


@dataclass(frozen=True)
class Written:
    """What a side has left.

    Args:
        checkpoints: how many it said were written.
        megabytes: of the newest that is there.
        figures: in the database.
    """

    checkpoints: int
    megabytes: float
    figures: int


def written(folder: Path) -> Written:
    """What is in the folder of a side."""
    said = sum('"checkpoint"' in line for line in (folder / "run" / "progress.jsonl").read_text().splitlines())
    kept = sorted(path.parent for path in (folder / "run" / "checkpoints").glob("*/record.json"))
    megabytes = sum(file.stat().st_size for file in kept[-1].iterdir()) / 1e6 if kept else 0.0
    if not (folder / DATABASE).exists():
        return Written(said, megabytes, 0)
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        return Written(said, megabytes, database.execute("select count(*) from metrics").fetchone()[0])


def run_side(side: Side, setting: Setting, folder: Path) -> None:
    """A training that waits for its turn after each round, until it is killed."""
    from dmlscale.config.load import load_config
    from dmlscale.distributed.world import World
    from dmlscale.launch import preflight
    from dmlscale.launch.local import local_device
    from dmlscale.launch.run import run_folder
    from dmlscale.launch.task import Task
    from dmlscale.launch.tracked import start_run
    from dmlscale.launch.worker import Training

    first = setting.steps // 2

    class InTurns(Training):
        """Stops in the middle between two checkpoints."""

        began = (0.0, 0.0)

        def _log(self, step: int, *figures: Any) -> None:
            super()._log(step, *figures)
            if step % setting.steps_of_turn != first:
                return
            now = (time.perf_counter(), time.process_time())
            print("round", *(after - before for after, before in zip(now, self.began, strict=True)), flush=True)
            sys.stdin.readline()
            self.began = (time.perf_counter(), time.process_time())

    overrides = [
        *side.overrides(setting.steps),
        *setting.overrides,
        f"run.folder={folder}",
        "run.name=run",
        f"train.steps={NEVER}",
        f"train.log_every={first}",
        f"resources.stall_timeout_s={NEVER}",  # a stopped process seems to hang
        "resources.workers=1",
        f"resources.device={setting.device}",
        "tracking.registered_model=null",
    ]
    config = run_folder.resolve(load_config(CONFIG, overrides), "overhead")
    opened = run_folder.open_folder(config, resume=False)
    index = preflight.prepare_data(config, lambda line: None)
    uri = setting.tracking_uri or f"sqlite:///{folder / DATABASE}"
    run = start_run(config, index, uri, opened, "benchmarks.overhead") if side.tracks else None
    run_folder.write_config(config, index, opened)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    task = Task("train", config.model_dump(mode="json"), str(opened), None, uri if side.tracks else "", run)
    InTurns(task, World(), local_device(config.resources)).run()
