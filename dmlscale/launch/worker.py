"""What each rank runs, whoever started it."""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmlscale.data.loader import Position, TrainStream
from dmlscale.data.reader import LossKind
from dmlscale.data.skipped import KINDS
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import average_buffers
from dmlscale.launch import build
from dmlscale.launch.attempt import begin_attempt
from dmlscale.launch.evaluation.bank_sample import gather_banks, trained_labels
from dmlscale.launch.evaluation.evaluate_checkpoint import evaluate_checkpoint
from dmlscale.launch.evaluation.evaluator import Evaluator, FinalEvaluation
from dmlscale.launch.evaluation.report import draw_report
from dmlscale.launch.mining import Miner
from dmlscale.launch.progress import Progress
from dmlscale.launch.ranks import OverRanks
from dmlscale.launch.run_folder import check_same_dataset
from dmlscale.launch.task import Task
from dmlscale.models.embedder import Embedder
from dmlscale.tracking.tracker import NullTracker, Tracker
from dmlscale.training import checkpoint
from dmlscale.training.loop import Hooks, run_loop
from dmlscale.training.state import Record, tensors
from dmlscale.training.step import Trainee

Report = Callable[[Mapping[str, float]], None]
"""Takes the figures of an evaluation; called on all ranks at the same step. It may end the process."""


def work(task: Task, world: World, device: torch.device, *, report: Report | None = None) -> dict[str, Any]:
    """Does the task; all ranks return the same result, in which rank 0 also names figures that could not be drawn."""
    if task.kind == "train":
        return Training(task, world, device, report).run()
    return evaluate_checkpoint(task, world, device)


class Training:
    """One training on one rank, from its newest checkpoint or from the start.

    Args:
        task: what to do.
        world: the ranks.
        device: of this rank.
        report: who wants to know of evaluations; None for nobody.
    """

    def __init__(self, task: Task, world: World, device: torch.device, report: Report | None = None) -> None:
        self._task, self._world, self._device, self._report = task, world, device, report
        self._attempt = begin_attempt(task.attempts, world, device)
        self._say = Progress(task.progress, self._attempt, speaks=world.rank == 0).say
        self._config = task.settings
        self._split = self._config.data.eval_split
        self._index = build.open_index(self._config)
        check_same_dataset(Path(task.folder), self._index)  # that the driver looked at, which may be on another machine
        self._embedder: Embedder = build.build_embedder(self._config)
        objective = build.build_objective(self._config, self._index.num_classes, world).to(device)
        self._trainee: Trainee = build.build_trainee(self._config, self._embedder, objective, world, device)
        self._evaluated = build.evaluated(self._config, self._embedder, world, device)
        self._evaluator = Evaluator(self._config, self._index, world, device)
        self._tracker = self._open_tracker()
        self._miner = Miner(
            task,
            self._index,
            self._evaluated,
            world,
            device,
            say=lambda message: self._say(message=message),
            log=self._tracker.log_metrics,
        )
        self._ranks = OverRanks(world, device)
        self._skipped: dict[int, LossKind] = {}

    def run(self) -> dict[str, Any]:
        """Trains, evaluates at the end, and returns the final figures; the tracker is closed whatever happens."""
        self._tracker.log_artifact(Path(self._task.folder) / "config.yaml")
        with build.build_stream(self._config, self._index, self._world, self._miner) as stream:
            start = self._resume(stream)
            self._stream = stream
            self._cost_before, self._since = self._cost_at(start), time.monotonic()
            hooks = Hooks(self._log, self._evaluate, self._save, self._task.stop_file.exists)
            rhythm = build.build_rhythm(self._config)
            try:
                end = run_loop(self._trainee, stream, rhythm, hooks, start, self._device)
                result: dict[str, Any] = {"step": end.step, "stopped": end.was_stopped, "started_at_step": start}
                result["skipped"] = dict(Counter(self._skipped.values()))
                if not end.was_stopped:
                    result |= self._finish(end.step)
            except BaseException as error:
                self._tracker.finish("FAILED", f"{type(error).__name__}: {error}")
                raise
        self._tracker.finish(*(("KILLED", "stopped on request") if end.was_stopped else ("FINISHED", "")))
        return result

    def _finish(self, step: int) -> dict[str, Any]:
        average_buffers(self._embedder, self._world)
        everything = self._config.evaluation.report
        final = self._evaluator.finish(self._evaluated, everything=everything)
        self._tell(step, final.measured.metrics)
        self._tracker.log_metrics(final.logged(self._split), step)
        result = final.result()
        if everything:
            result["left_out"] |= self._draw(step, final)
            result["report"] = str(self._task.own_report)
        newest = checkpoint.latest(self._task.checkpoints)
        return result | {"checkpoint": str(newest)}

    def _draw(self, step: int, final: FinalEvaluation) -> dict[str, str]:
        """Writes the report; returns what could not be drawn, and why."""
        trained = trained_labels(self._config, self._index)
        banks = gather_banks(self._trainee.objective, trained, self._ranks, seed=self._config.run.seed)
        folder = self._task.own_report
        written = draw_report(self._evaluator, final, banks, folder, self._config, self._index, self._world, step=step)
        for file in written.files:
            self._tracker.log_artifact(file, "figures" if file.suffix == ".png" else "")
        return written.left_out

    def _resume(self, stream: TrainStream) -> int:
        newest = checkpoint.newest_for_all(self._task.checkpoints, self._world)
        if newest is None:
            if self._config.train.bank_start == "class_means" and self._trainee.objective.banks():
                self._say(message="one pass over the training split: class banks start at class means")
                self._trainee.objective.start_at_class_means(self._train_embeddings())
            return 0
        record = checkpoint.read_record(newest)
        checkpoint.load(newest, self._tensors(), self._world)
        stream.load_state_dict(record.position)
        self._say(message=f"continuing at step {record.step} from {newest.name}, written by {record.num_ranks} workers")
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
        metrics["data/skipped_samples"] = float(self._count_skipped())
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

    def _count_skipped(self) -> int:
        """Training samples left out so far, over all ranks; says so when there are more of them."""
        new = torch.tensor(self._stream.skipped.take_new(), dtype=torch.int64).reshape(-1, 2)
        new = self._ranks.gather(new)
        # By row: in another epoch another rank may meet the same sample.
        self._skipped |= {row: KINDS[kind] for row, kind in new.tolist()}
        if len(new):
            counts = Counter(self._skipped.values())
            why = ", ".join(f"{count:,} x {kind}" for kind, count in counts.items())
            self._say(message=f"{counts.total():,} training samples skipped so far: {why}")
        return len(self._skipped)

    def _evaluate(self, step: int) -> None:
        average_buffers(self._embedder, self._world)
        self._tell(step, self._evaluator.model(self._evaluated)[0])

    def _tell(self, step: int, metrics: dict[str, float]) -> None:
        # Counts do not change from step to step: they would only be flat charts.
        named = {f"eval/{self._split}/{k}": v for k, v in metrics.items() if not k.startswith("num_")}
        self._tracker.log_metrics(named, step)
        self._say(step=step, steps=self._config.train.steps, evaluation=metrics, cost_s=self._cost())
        if metrics["num_skipped"]:
            self._say(message=f"{metrics['num_skipped']:,.0f} samples to evaluate could not be read and were skipped")
        if self._report is not None:
            self._report(metrics | {"step": step, "cost_s": self._cost()})

    def _cost(self) -> float:
        """Seconds of all workers that the run has taken so far, those before a resume included."""
        return self._cost_before + (time.monotonic() - self._since) * self._world.num_ranks

    def _cost_at(self, start: int) -> float:
        """What had been spent when the checkpoint of this step was written."""
        if not start or not self._task.progress.exists():
            return 0.0
        entries = map(json.loads, self._task.progress.read_text().splitlines())
        return next((e["cost_s"] for e in entries if "checkpoint" in e and e["step"] == start and "cost_s" in e), 0.0)

    def _save(self, step: int, position: dict[str, int]) -> None:
        average_buffers(self._embedder, self._world)
        record = Record(
            step=step,
            position=position,
            num_ranks=self._world.num_ranks,
            config=self._task.config,
            tracking={"uri": self._task.tracking_uri, "run": self._task.tracking_run},
        )
        keep = self._config.train.keep_checkpoints
        path = checkpoint.save(
            self._task.checkpoints, self._tensors(), record, self._world, keep=keep, attempt=self._attempt.number
        )
        self._tracker.set_tags({"dmlscale.checkpoint": str(path)})
        self._say(step=step, steps=self._config.train.steps, checkpoint=str(path), cost_s=self._cost())

    def _open_tracker(self) -> Tracker:
        if self._world.rank != 0 or self._task.tracking_run is None:
            return NullTracker()
        from dmlscale.tracking.mlflow import MlflowTracker  # 3 s to import: on the one rank that needs it

        return MlflowTracker(
            self._task.tracking_uri,
            self._task.tracking_run,
            Path(self._task.folder) / "tracking.jsonl",
            system_interval_s=self._config.tracking.system_metrics_every_s,
        )
