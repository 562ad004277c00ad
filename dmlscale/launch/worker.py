"""What each rank runs, whoever started it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlscale.data.loader import Position
from dmlscale.data.planning.mined_plan import NeighborTable
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import average_buffers
from dmlscale.launch import build
from dmlscale.launch.evaluation.evaluate_checkpoint import evaluate_checkpoint
from dmlscale.launch.evaluation.of_run import Report, RunEvaluations
from dmlscale.launch.mining import Miner
from dmlscale.launch.ranks import OverRanks
from dmlscale.launch.recovery.attempt import begin_attempt
from dmlscale.launch.recovery.watchdog import Watch, watch_limits
from dmlscale.launch.run.progress import Progress
from dmlscale.launch.run.recorder import open_tracker
from dmlscale.launch.run.run_folder import CONFIG_FILE, check_same_dataset
from dmlscale.launch.run.saving import RunSaver
from dmlscale.launch.run.skipped_samples import SkippedCount
from dmlscale.launch.run.skipped_steps import SkippedSteps
from dmlscale.launch.task import HANDS_OVER, Task
from dmlscale.models.embedder import Embedder
from dmlscale.training.loop import Hooks, run_loop
from dmlscale.training.slow_ranks import SlowRanks
from dmlscale.training.state import Record, tensors
from dmlscale.training.step import Trainee


def work(
    task: Task, world: World, device: torch.device, *, report: Report | None = None, restartable: bool = False
) -> dict[str, Any]:
    """Does the task; all ranks return the same result, in which rank 0 also names figures that could not be drawn.

    A process that waits for one that is lost, or hangs, is ended where it is ``restartable`` by whoever started it.
    """
    return made_ready(task, world, device, report=report, restartable=restartable)()


def made_ready(
    task: Task, world: World, device: torch.device, *, report: Report | None = None, restartable: bool = False
) -> Callable[[], dict[str, Any]]:
    """Does the task when it is called; see `work`. An error on the way to it is one before any step of a training."""
    if task.kind == "train":
        return Training(task, world, device, report, restartable=restartable).run
    return lambda: _evaluated(task, world, device, restartable=restartable)


def _evaluated(task: Task, world: World, device: torch.device, *, restartable: bool) -> dict[str, Any]:
    limits = watch_limits(task.settings.resources)
    with Watch(None, world, device, limits, restartable=restartable, tell=print) as watch:
        watch.at(0, "evaluation")
        return evaluate_checkpoint(task, world, device)


class Training:
    """One training on one rank, from its newest checkpoint or from the start.

    Args:
        task: what to do.
        world: the ranks.
        device: of this rank.
        report: who wants to know of evaluations; None for nobody.
        restartable: see `work`.
    """

    def __init__(
        self,
        task: Task,
        world: World,
        device: torch.device,
        report: Report | None = None,
        *,
        restartable: bool = False,
    ) -> None:
        self._task, self._world, self._device = task, world, device
        self._attempt = begin_attempt(task.attempts, world, device)
        self._progress = progress = Progress(task.progress, self._attempt, speaks=world.rank == 0)
        self._say = progress.say
        self._config = task.settings
        limits = watch_limits(self._config.resources)
        self._watch = Watch(self._attempt, world, device, limits, restartable=restartable, tell=progress.fault)
        try:
            self._set_up(report)
        except BaseException as error:
            self._watch.end(error)  # or it would take a process that goes on, as a notebook does, for one that hangs
            raise

    def _set_up(self, report: Report | None) -> None:
        task, world, device, progress = self._task, self._world, self._device, self._progress
        self._index = build.open_index(self._config)
        check_same_dataset(Path(task.folder), self._index)  # that the driver looked at, which may be on another machine
        self._embedder: Embedder = build.build_embedder(self._config)
        objective = build.build_objective(self._config, self._index.num_classes, world).to(device)
        self._trainee: Trainee = build.build_trainee(self._config, self._embedder, objective, world, device)
        self._evaluated = build.evaluated(self._config, self._embedder, world, device)
        self._tracker = open_tracker(task, self._attempt, world, self._say)
        self._saver = RunSaver(task, world, self._attempt, say=self._say, tracker=self._tracker)
        self._cost_before, self._since = 0.0, time.monotonic()
        self._evaluations = RunEvaluations(
            task,
            self._index,
            self._embedder,
            self._evaluated,
            objective,
            world,
            device,
            progress=progress,
            tracker=self._tracker,
            saver=self._saver,
            watch=self._watch,
            cost=self._cost,
            report=report,
        )
        self._miner = Miner(
            task,
            self._index,
            self._evaluated,
            world,
            device,
            say=progress.message,
            log=self._tracker.log_metrics,
            rounds_in_use=self._saver.rounds_in_use,
        )
        self._ranks = OverRanks(world, device)
        self._skipped = SkippedCount(self._ranks, message=progress.message)
        self._skipped_steps = SkippedSteps(
            self._config.train.max_skipped_steps,
            Path(task.folder) / "skipped_steps",
            self._index,
            fault=progress.fault,
            writes=world.rank == 0,
        )
        self._slow_ranks = SlowRanks(self._attempt.hosts, fault=progress.fault, message=progress.message)

    def run(self) -> dict[str, Any]:
        """Trains, evaluates at the end, and returns the final figures; the tracker is closed whatever happens."""
        try:
            self._tracker.log_artifact(Path(self._task.folder) / CONFIG_FILE)
            with self._watch, build.build_stream(self._config, self._index, self._world, self._mine) as self._stream:
                result = self._train()
        except BaseException:
            self._saver.linger()
            self._tracker.close()  # whether the run has failed is for the driver to say, which may start it again
            raise
        if result["stopped"] and not self._task.stop_file.exists():
            self._tracker.close()  # others go on with the run at once
            return result | {HANDS_OVER: True}
        self._tracker.finish(*(("KILLED", "stopped on request") if result["stopped"] else ("FINISHED", "")))
        return result

    def _train(self) -> dict[str, Any]:
        start = self._resume()
        self._evaluations.make_up_for(start)
        hooks = Hooks(
            self._log,
            self._evaluations.evaluate,
            self._save,
            self._task.is_stop_asked,
            save_due=self._saver.is_due,
            save_failed=self._saver.has_failed,
            settle=self._saver.settle,
            phase=self._watch.at,
            skip=self._skipped_steps,
            look_at_paces=self._slow_ranks.look,
        )
        end = run_loop(self._trainee, self._stream, build.build_rhythm(self._config), hooks, start, self._device)
        self._saver.finish()
        result: dict[str, Any] = {"step": end.step, "stopped": end.was_stopped, "started_at_step": start}
        result["skipped"] = self._skipped.by_kind()
        return result if end.was_stopped else result | self._finish(end.step)

    def _mine(self, round_number: int, *, is_new: bool) -> NeighborTable:
        with self._watch.during("mining"):
            return self._miner(round_number, is_new=is_new)

    def _finish(self, step: int) -> dict[str, Any]:
        return self._evaluations.finish(step)

    def _resume(self) -> int:
        record = self._saver.restore(self._tensors())
        self._saver.check_place(self._tensors())
        if record is None:
            if self._config.train.bank_start == "class_means" and self._trainee.objective.banks():
                self._say(message="one pass over the training split: class banks start at class means")
                self._watch.at(0, "class means")
                self._trainee.objective.start_at_class_means(self._train_embeddings())
            return 0
        self._stream.load_state_dict(record.position)
        self._skipped_steps.count, self._cost_before = record.skipped_steps, record.cost_s
        name = Path(self._saver.newest or "").name
        self._say(message=f"continuing at step {record.step} from {name}, written by {record.num_ranks} workers")
        return record.step

    @torch.no_grad()
    def _train_embeddings(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._evaluated.eval()
        for batch in build.build_eval_batches(self._config, self._index, self._config.data.train_split, self._world):
            here = batch.to(self._device)
            yield self._evaluated(here.images), here.labels

    def _tensors(self) -> dict[str, Tensor]:
        return tensors(self._embedder, self._trainee.objective, self._trainee.optimizer, self._world)

    def _log(self, step: int, metrics: dict[str, float], position: Position) -> None:
        metrics["data/skipped_samples"] = float(self._skipped.add(self._stream.skipped))
        if self._skipped_steps.count:
            metrics["train/skipped_steps"] = float(self._skipped_steps.count)
        if self._world.rank == 0:
            # Tells whether two runs saw the same global batch, without storing its ids.
            ids = np.sort(self._stream.global_ids(position))
            self._say(
                step=step,
                steps=self._config.train.steps,
                metrics=metrics,
                position=position._asdict(),
                batch=f"{zlib.crc32(ids.tobytes()):08x}",
            )
            self._tracker.log_metrics(metrics, step)

    def _cost(self) -> float:
        """Seconds of all workers that the run has taken so far, those before a resume included."""
        return self._cost_before + (time.monotonic() - self._since) * self._world.num_ranks

    def _save(self, step: int, position: dict[str, int]) -> None:
        average_buffers(self._embedder, self._world)
        record = Record(
            step=step,
            position=position,
            num_ranks=self._world.num_ranks,
            config=self._task.config,
            tracking={"uri": self._task.tracking_uri, "run": self._tracker.run_id or self._task.tracking_run},
            skipped_steps=self._skipped_steps.count,
            cost_s=self._cost(),
        )
        self._saver.save(record, self._tensors())
