"""A run's checkpoints inside its workers: when, what, and what becomes of those that cannot be written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dmlscale.distributed.world import World
from dmlscale.launch.recovery.attempt import Attempt
from dmlscale.launch.run.checkpoint_places import checkpoint_store, retention_of
from dmlscale.launch.task import Task
from dmlscale.tracking.tracker import Tracker
from dmlscale.training.checkpoint.agreement import gather_texts, together
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.fetching import forget_others, load_newest
from dmlscale.training.checkpoint.folder import name_of
from dmlscale.training.checkpoint.retention import Scores
from dmlscale.training.checkpoint.saver import Failed, Saved, Saver
from dmlscale.training.checkpoint.store import record_in
from dmlscale.training.state import Record

# Between the tries to write a run's last checkpoint: seconds.
_PAUSES = (1.0, 2.0, 4.0, 8.0)
_WORTH_A_WORD_S = 1.0
_LAST_MOMENT_S = 2.0

Tensors = Mapping[str, Tensor]


class RunSaver:
    """Writes and reads the checkpoints of a run; all ranks call the same methods at the same steps.

    Args:
        task: the training.
        world: the ranks.
        attempt: this start of the workers.
        say: tells the user; see `Progress`.
        tracker: of the run.

    Raises:
        CheckpointError: the place of the checkpoints cannot be opened; on all ranks.
    """

    def __init__(
        self, task: Task, world: World, attempt: Attempt, *, say: Callable[..., None], tracker: Tracker
    ) -> None:
        self._task, self._world, self._attempt, self._say, self._tracker = task, world, attempt, say, tracker
        self._settings = task.settings.train
        self._store = together(lambda: checkpoint_store(task.settings, Path(task.folder)), world)
        self._retention = retention_of(task.settings)
        self._scores = Scores(self._store, self._retention)
        self._saver = Saver(
            self._store,
            self._scores,
            world,
            attempt=attempt.number,
            is_current=attempt.is_current,
            in_background=self._settings.async_checkpoints,
            on_saved=self._tell,
        )
        self._last: tuple[Record, Tensors] | None = None  # that was begun
        self._is_on_its_way = False
        self._lost: Failed | None = None  # if that one could not be written
        self._last_good: str | None = None
        self._num_failed = 0
        self._began_at = time.monotonic()

    @property
    def newest(self) -> str | None:
        """The last checkpoint that is known to be complete."""
        return None if self._last_good is None else f"{self._store.place}/{self._last_good}"

    def restore(self, tensors: Tensors) -> Record | None:
        """Fills the tensors from the newest that is whole and says where the run stood; None where there is none.

        What earlier starts left beside it is removed.
        """
        found = load_newest(self._store, tensors, self._world, self._say)
        self._last_good = None if found is None else found[0]
        self._clean()
        return None if found is None else found[1]

    def check_place(self, tensors: Tensors) -> None:
        """Before training: whether checkpoints can be written, and a word where there is little room for them.

        Raises:
            CheckpointError: a rank cannot write, and there is no checkpoint yet with which the run could end; on all
                ranks.
        """
        try:
            together(self._store.check_writable, self._world)
        except CheckpointError as error:
            text = f"checkpoints cannot be written to {self._store.place} ({error})"
            if self._last_good is None or self._settings.on_checkpoint_error == "stop":
                raise CheckpointError(f"{text}: mend that, or set train.checkpoint_folder") from error
            self._say(fault=f"{text}: the last good one is {self._last_good}; training goes on and tries")
        size, free = _num_bytes(tensors), self._store.free_bytes()
        count = self._retention.newest + self._retention.best + 1
        if free is not None and free < count * size:
            self._say(
                message=f"warning: {self._store.place} has {_mb(free)} free, and {count} checkpoints of {_mb(size)} "
                "may be there at a time: free some space, or set train.checkpoint_folder"
            )

    def save(self, record: Record, tensors: Tensors) -> None:
        """Begins a checkpoint, once the one before is complete or given up.

        Raises:
            CheckpointError: one could not be written, and ``train.on_checkpoint_error`` is stop; on all ranks.
        """
        started = time.perf_counter()
        self.settle()
        waited = time.perf_counter() - started
        if waited > _WORTH_A_WORD_S:
            self._say(
                message=f"step {record.step} waited {waited:.1f} s for the checkpoint before to be written: save less "
                "often (train.checkpoint_every), or to a faster place"
            )
        self._last, self._lost, self._is_on_its_way = (record, tensors), None, True
        self._began_at = time.monotonic()
        self._saver.save(tensors, record, waited_s=waited)
        if not self._settings.async_checkpoints:
            self.settle()

    def is_due(self) -> bool:
        """Whether so much time has passed that a checkpoint is due; rank 0's clock counts."""
        minutes = self._settings.checkpoint_every_minutes
        return minutes is not None and self._world.rank == 0 and time.monotonic() - self._began_at >= 60 * minutes

    def has_failed(self) -> bool:
        """Whether this rank knows that the last checkpoint cannot be completed."""
        return self._saver.has_failed()

    def settle(self) -> None:
        """Waits for the last checkpoint, and says so if it could not be written.

        Raises:
            CheckpointError: it could not, and ``train.on_checkpoint_error`` is stop; on all ranks.
        """
        failed = self._settled()
        if failed is not None and failed.step < self._settings.steps:  # `finish` sees to the last one
            self._go_on_or_stop(failed)

    def finish(self) -> None:
        """Waits for the last checkpoint of the run, which must be written: it is tried for a while.

        Raises:
            CheckpointError: it could not be written; on all ranks.
        """
        self._settled()
        for pause in _PAUSES:
            failed = self._lost
            if failed is None or self._last is None:
                return
            again = f"trying again in {pause:g} s, as it is the run's last"
            self._say(fault=f"checkpoint of step {failed.step} could not be written ({failed.reason}): {again}")
            time.sleep(pause)
            record, tensors = self._last
            self._lost, self._is_on_its_way = None, True
            self._saver.save(tensors, record)
            self._settled()
        if self._lost is not None:
            raise self._error(self._lost)

    def linger(self) -> None:
        """When the run ends with an error: gives a checkpoint on its way a moment. Other ranks may be gone."""
        self._saver.linger(_LAST_MOMENT_S)

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Notes how good the checkpoint of a step is.

        Raises:
            CheckpointError: ``train.best_metric`` is not among the metrics; on all ranks.
        """
        self._retention.check(metrics)
        if not self._retention.best or self._world.rank != 0:
            return
        try:
            if self._attempt.is_current():
                self._scores.note(name_of(step), metrics)
        except (CheckpointError, OSError) as error:
            self._say(fault=f"the metrics of step {step} could not be noted ({error}): it counts as not evaluated")

    def best(self) -> dict[str, Any]:
        """The best checkpoint of the run, for its result; empty where none is kept, and on other ranks than 0."""
        if not self._retention.best or self._world.rank != 0:
            return {}
        try:
            if self._attempt.is_current():
                self._scores.apply(newest=self._last_good)  # the last evaluation may have made one superfluous
            found = self._scores.best()
        except (CheckpointError, OSError) as error:  # the run is done, and need not fail for this
            self._say(fault=f"the best checkpoint cannot be told ({error})")
            return {}
        if found is None:
            return {}
        return {"checkpoint": f"{self._store.place}/{found[0]}", "metric": self._retention.metric, "value": found[1]}

    def rounds_in_use(self) -> set[int]:
        """Epochs or rounds of mining in which the run's checkpoints were written, the one on its way included."""
        records = [record_in(self._store, name) for name in self._store.complete()]
        records += [] if self._last is None else [self._last[0]]
        return {record.position["epoch"] for record in records if "epoch" in record.position}

    def _clean(self) -> None:
        if self._world.rank != 0:
            return
        try:
            if self._attempt.is_current():
                forget_others(self._store, self._last_good)
        except (CheckpointError, OSError) as error:
            self._say(message=f"what earlier starts have left in {self._store.place} could not be removed: {error}")

    def _settled(self) -> Failed | None:
        if not self._is_on_its_way or self._last is None:
            return None
        self._is_on_its_way = False
        self._lost = self._saver.settle()
        if self._lost is None:
            self._last_good = name_of(self._last[0].step)
        return self._lost

    def _go_on_or_stop(self, failed: Failed) -> None:
        self._num_failed += 1
        self._tracker.log_metrics({"checkpoint/failed": float(self._num_failed)}, failed.step)
        if self._settings.on_checkpoint_error == "stop":
            raise self._error(failed)
        good = "there is none yet" if self._last_good is None else f"the last good one is {self._last_good}"
        every = self._settings.checkpoint_every
        following = min((failed.step // every + 1) * every, self._settings.steps)
        self._say(
            fault=f"checkpoint of step {failed.step} could not be written ({failed.reason}): {good}; training goes on, "
            f"the next try is at step {following} at the latest"
        )

    def _error(self, failed: Failed) -> CheckpointError:
        assert self._last is not None
        try:
            free = self._store.free_bytes()
        except OSError:
            free = None
        room = "" if free is None else f", {_mb(free)} are free there"
        text = (
            f"checkpoint of step {failed.step} could not be written ({failed.reason}). It needs "
            f"{_mb(_num_bytes(self._last[1]))}{room}. Last good one: {self.newest or 'none'}. Free some space or "
            f"mend the place, then the same command with run.name={self._task.settings.run.name} goes on"
        )
        return CheckpointError(gather_texts(text, self._world)[0])

    def _tell(self, saved: Saved) -> None:
        """On rank 0, in the thread that wrote it."""
        path, record, mb = f"{self._store.place}/{saved.name}", saved.record, saved.num_bytes / 1e6
        cost = {"mb": mb, "held_up_s": saved.held_up_s, "written_s": saved.written_s}
        self._say(step=record.step, steps=self._settings.steps, checkpoint=path, cost_s=record.cost_s, **cost)
        self._tracker.set_tags({"dmlscale.checkpoint": path})
        self._tracker.log_metrics({f"checkpoint/{name}": value for name, value in cost.items()}, record.step)


def _num_bytes(tensors: Tensors) -> int:
    """Of whole tensors, however they are cut over ranks."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
