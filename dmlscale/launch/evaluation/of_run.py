"""The evaluations of a run while it trains: who is told of them, the one that a kill left out, and the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from dmlscale.data.index import Index
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import average_buffers
from dmlscale.launch.evaluation.bank_sample import gather_banks, trained_labels
from dmlscale.launch.evaluation.evaluator import Evaluator, FinalEvaluation
from dmlscale.launch.evaluation.report import draw_report
from dmlscale.launch.ranks import OverRanks
from dmlscale.launch.recovery.watchdog import Watch
from dmlscale.launch.run.progress import Progress
from dmlscale.launch.run.saving import RunSaver
from dmlscale.launch.task import Task
from dmlscale.models.embedder import Embedder
from dmlscale.tracking.tracker import Tracker
from dmlscale.training.objective import Objective

Report = Callable[[Mapping[str, float]], None]
"""Takes the figures of an evaluation; called on all ranks at the same step. It may end the process."""


class RunEvaluations:
    """Evaluates the model of a run; all ranks call every method at the same step.

    Args:
        task: the training.
        index: the dataset.
        embedder: that is trained.
        evaluated: the same as images -> embeddings.
        objective: whose class banks are in the report.
        world: the ranks.
        device: of this rank.
        progress: of the run.
        tracker: of the run.
        saver: that keeps the best checkpoint.
        watch: over the phases of this rank.
        cost: seconds of all workers that the run has taken so far.
        report: who else wants to know of evaluations; None for nobody.
    """

    def __init__(
        self,
        task: Task,
        index: Index,
        embedder: Embedder,
        evaluated: nn.Module,
        objective: Objective,
        world: World,
        device: torch.device,
        *,
        progress: Progress,
        tracker: Tracker,
        saver: RunSaver,
        watch: Watch,
        cost: Callable[[], float],
        report: Report | None = None,
    ) -> None:
        self._task, self._index, self._world = task, index, world
        self._embedder, self._evaluated, self._objective = embedder, evaluated, objective
        self._progress, self._tracker, self._saver, self._watch = progress, tracker, saver, watch
        self._cost, self._report = cost, report
        self._config = task.settings
        self._split = self._config.data.eval_split
        self._ranks = OverRanks(world, device)
        self._evaluator = Evaluator(self._config, index, world, device)

    def make_up_for(self, step: int) -> None:
        """Evaluates at the start if the run ended between the checkpoint of this step and its evaluation."""
        train = self._config.train
        if not step or not train.eval_every or step % train.eval_every or step >= train.steps:
            return
        missing = self._world.rank == 0 and not self._progress.has_evaluation(step)
        if self._ranks.from_rank_0(torch.tensor([missing], dtype=torch.int64)):
            self._watch.at(step, "evaluation")
            self.evaluate(step)

    def evaluate(self, step: int) -> None:
        """The cheap metrics, on the way."""
        average_buffers(self._embedder, self._world)
        self._tell(step, self._evaluator.model(self._evaluated)[0])

    def finish(self, step: int) -> dict[str, Any]:
        """All metrics at the end, and the report where the config asks for it.

        Returns:
            The final figures, the same on all ranks, but for those that could not be drawn: rank 0's result alone
            names them.
        """
        self._watch.at(step, "evaluation")
        average_buffers(self._embedder, self._world)
        everything = self._config.evaluation.report
        final = self._evaluator.finish(self._evaluated, everything=everything)
        self._tell(step, final.measured.metrics)
        self._tracker.log_metrics(final.logged(self._split), step)
        result = final.result()
        if everything:
            result["left_out"] |= self._draw(step, final)
            result["report"] = str(self._task.own_report)
        return result | {"checkpoint": self._saver.newest, "best": self._saver.best()}

    def _draw(self, step: int, final: FinalEvaluation) -> dict[str, str]:
        """Writes the report; returns what could not be drawn, and why."""
        trained = trained_labels(self._config, self._index)
        banks = gather_banks(self._objective, trained, self._ranks, seed=self._config.run.seed)
        folder = self._task.own_report
        written = draw_report(self._evaluator, final, banks, folder, self._config, self._index, self._world, step=step)
        for file in written.files:
            self._tracker.log_artifact(file, "figures" if file.suffix == ".png" else "")
        return written.left_out

    def _tell(self, step: int, metrics: dict[str, float]) -> None:
        # Counts do not change from step to step: they would only be flat charts.
        named = {f"eval/{self._split}/{k}": v for k, v in metrics.items() if not k.startswith("num_")}
        self._tracker.log_metrics(named, step)
        self._saver.evaluated(step, metrics)
        # After all that is to be kept: an evaluation that is told here is not made up for after a kill.
        self._progress.say(step=step, steps=self._config.train.steps, evaluation=metrics, cost_s=self._cost())
        if metrics["num_skipped"]:
            skipped = f"{metrics['num_skipped']:,.0f} samples to evaluate could not be read and were skipped"
            self._progress.message(skipped)
        if self._report is not None:
            self._watch.at(step, "report")
            self._report(metrics | {"step": step, "cost_s": self._cost()})
