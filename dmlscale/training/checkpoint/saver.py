"""Checkpoints that are written while the training goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.buffers import Buffers
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.folder import name_of
from dmlscale.training.checkpoint.pieces import Piece, pieces_to_write
from dmlscale.training.checkpoint.reasons import reason_of, reason_of_any
from dmlscale.training.checkpoint.retention import Retention, Scores
from dmlscale.training.checkpoint.saving import commit, discard, tidy, write_part
from dmlscale.training.checkpoint.store import Store, open_store
from dmlscale.training.state import Record

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is there; rank 0 is told.

    Args:
        record: where the run stood.
        name: of the checkpoint.
        num_bytes: of all ranks.
        held_up_s: seconds for which rank 0 could not train.
        written_s: seconds from then on until the checkpoint was complete.
    """

    record: Record
    name: str
    num_bytes: int
    held_up_s: float
    written_s: float


@dataclass(frozen=True)
class Failed:
    """A checkpoint that could not be written, and why; the same on every rank."""

    step: int
    reason: str


@dataclass
class _Job:
    """A checkpoint on its way."""

    record: Record
    pieces: Sequence[Piece]
    started: float  # seconds of the performance counter
    copied_at: float
    is_written: threading.Event = field(default_factory=threading.Event)  # what this rank has to write, or not at all
    is_abandoned: threading.Event = field(default_factory=threading.Event)
    part_reason: str = ""
    commit_reason: str = ""
    thread: threading.Thread | None = None


class Saver:
    """Writes checkpoints, one at a time; all ranks call `save` and `settle` at the same steps.

    The training waits for a copy of what this rank writes. A thread writes it and tells so by a note in the
    checkpoint's folder; rank 0's thread waits for the notes of all, commits, and removes what is not to be kept. There
    are no collectives in the threads: what went wrong is exchanged by the main threads in `settle`.

    Args:
        store: where.
        scores: what is kept.
        world: the ranks.
        attempt: number of this start of the run's workers.
        is_current: whether no later start has begun; else nothing is committed and nothing removed.
        in_background: whether the training goes on meanwhile; else nothing is copied, and `settle` must follow at once.
        on_saved: called on rank 0 when a checkpoint is complete, in the thread that wrote it.
    """

    def __init__(
        self,
        store: Store,
        scores: Scores,
        world: World,
        *,
        attempt: int,
        is_current: Callable[[], bool] = lambda: True,
        in_background: bool = True,
        on_saved: Callable[[Saved], None] = lambda saved: None,
    ) -> None:
        self._store, self._scores, self._world = store, scores, world
        self._attempt, self._is_current, self._on_saved = attempt, is_current, on_saved
        self._buffers = Buffers() if in_background else None
        self._job: _Job | None = None

    def save(self, tensors: Mapping[str, Tensor], record: Record, *, waited_s: float = 0.0) -> None:
        """Begins a checkpoint; the one before must be settled.

        Args:
            tensors: from `state.tensors`; they may change as soon as this returns.
            record: where the run stands.
            waited_s: seconds that the training has just waited for the checkpoint before, to be told with this one.
        """
        assert self._job is None, "settle the checkpoint before this one first"
        started = time.perf_counter()
        pieces: Sequence[Piece] = pieces_to_write(tensors, self._world)
        if self._buffers is not None:
            pieces = self._buffers.copy(pieces)
        self._job = job = _Job(record, pieces, started - waited_s, time.perf_counter())
        self._start(job)

    def linger(self, timeout_s: float) -> None:
        """Waits a while for this rank's thread, without the other ranks."""
        if self._job is not None and self._job.thread is not None:
            self._job.thread.join(timeout_s)

    def has_failed(self) -> bool:
        """Whether this rank knows that the checkpoint on its way cannot be completed; `settle` tells all why."""
        return self._job is not None and bool(self._job.part_reason or self._job.commit_reason)

    def settle(self) -> Failed | None:
        """Waits until the checkpoint on its way is complete or given up, and tells all ranks the same."""
        job, self._job = self._job, None
        if job is None:
            return None
        job.is_written.wait()
        reason = reason_of_any(job.part_reason, self._world)
        if reason:
            job.is_abandoned.set()
        assert job.thread is not None
        job.thread.join()
        reason = reason or job.commit_reason
        if reason and self._world.rank == 0:
            self._discard(job)  # before any rank can begin the same one again
        reason = reason_of_any(reason, self._world)
        return Failed(job.record.step, reason) if reason else None

    def _start(self, job: _Job) -> None:
        # A daemon: a process that ends with an error does not wait for the other ranks.
        job.thread = threading.Thread(target=self._write, args=(job,), name="checkpoint", daemon=True)
        job.thread.start()

    def _write(self, job: _Job) -> None:
        name = name_of(job.record.step)
        try:
            write_part(self._store, name, job.pieces, self._world, self._attempt)
        except Exception as error:  # whatever it is, the main threads must hear of it together
            job.part_reason = reason_of(error, self._store, self._world)
        finally:
            job.is_written.set()
        if self._world.rank == 0 and not job.part_reason:
            self._commit(job, name)

    def _commit(self, job: _Job, name: str) -> None:
        try:
            num_bytes = commit(
                self._store,
                name,
                job.record,
                self._world,
                self._attempt,
                is_current=self._is_current,
                is_abandoned=job.is_abandoned,
            )
        except Exception as error:
            job.commit_reason = reason_of(error, self._store, self._world)
            return
        now = time.perf_counter()
        held_up_until = now if self._buffers is None else job.copied_at
        try:
            self._on_saved(Saved(job.record, name, num_bytes, held_up_until - job.started, now - job.copied_at))
        except Exception:  # it is complete, whoever cannot take that in; and old ones must go, else the disk fills
            logger.exception("%s is complete, which could not be told", name)
        try:
            if self._is_current():
                tidy(self._store, name)
                self._scores.apply(newest=name)
        except Exception as error:  # the checkpoint is there; the next one tries again
            logger.warning("old checkpoints could not be removed: %s", reason_of(error, self._store, self._world))

    def _discard(self, job: _Job) -> None:
        try:
            if self._is_current():
                discard(self._store, name_of(job.record.step), self._attempt)
        except (OSError, CheckpointError) as error:
            logger.warning("a partial checkpoint could not be removed: %s", reason_of(error, self._store, self._world))


def save(
    folder: Path, tensors: Mapping[str, Tensor], record: Record, world: World, *, keep: int, attempt: int = 0
) -> Path:
    """Writes one checkpoint from all ranks together and returns its path, when it is complete.

    Args:
        folder: of the run's checkpoints.
        tensors: from `state.tensors`.
        record: where the run stands.
        world: the ranks; all of them call this.
        keep: how many of the newest to keep.
        attempt: number of this start of the run's workers; files of another are never mixed with those of this one.

    Raises:
        CheckpointError: it could not be written; on every rank.
    """
    store = open_store(str(folder), {})
    saver = Saver(store, Scores(store, Retention(keep)), world, attempt=attempt, in_background=False)
    saver.save(tensors, record)
    failed = saver.settle()
    if failed is not None:
        raise CheckpointError(f"the checkpoint of step {failed.step} could not be written: {failed.reason}")
    return folder / name_of(record.step)
