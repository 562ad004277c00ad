"""The plans of a run, epoch after epoch: pure functions of (rows, options, seed, epoch)."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import key_of
from dmlscale.data.planning.checks import check_plan
from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.planning.group_plan import GroupPlan, Rows, SamplePlan
from dmlscale.data.planning.groups import Groups
from dmlscale.data.planning.hierarchy import lay_blocks
from dmlscale.data.planning.plan import EpochPlan
from dmlscale.data.planning.positives import lay_by_size
from dmlscale.data.planning.quotas import quotas_of
from dmlscale.data.planning.rows import fill_rows
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.planning.windows import ShardRows, WindowedPlan

_LAYOUT, _SAMPLES = 1, 2  # what a key is for
_KEPT = 2  # epochs: where one ends, threads work on its end and on the beginning of the next


class EpochPlanner:
    """Plans by epoch; the last two are kept. Threads may share it.

    Args:
        class_rows: of the split.
        sampling: options.
        seed: of the run, 0 or more.
        super_classes: (C,) the super-class of each class, 0 or more; for ``hierarchical``.
        shards: where the rows lie; for ``window_shards``.

    Raises:
        DataError: the data cannot be batched so.
    """

    def __init__(
        self,
        class_rows: ClassRows,
        sampling: Sampling,
        *,
        seed: int,
        super_classes: NDArray[np.int64] | None = None,
        shards: ShardRows | None = None,
    ) -> None:
        check_plan(class_rows, sampling, super_classes=super_classes, shards=shards)
        self._class_rows, self._sampling, self._seed = class_rows, sampling, seed
        self._super_classes, self._shards = super_classes, shards
        self._firsts = np.concatenate(([0], np.cumsum(quotas_of(class_rows.counts, sampling))))
        self._plans = lru_cache(_KEPT)(self._make)
        self._lock = Lock()  # so that threads that ask for the same epoch do not all plan it

    @property
    def num_streams(self) -> int:
        """N."""
        return self._sampling.num_streams

    def plan(self, epoch: int) -> EpochPlan:
        """The plan of an epoch."""
        with self._lock:
            return self._plans(epoch)

    def num_steps(self, epoch: int) -> int:
        """Batches of an epoch: the same for all, unless there are windows."""
        return self.plan(epoch).num_steps

    def after(self, epoch: int, step: int) -> tuple[int, int]:
        """The epoch and step that follow."""
        return (epoch, step + 1) if step + 1 < self.num_steps(epoch) else (epoch + 1, 0)

    def _make(self, epoch: int) -> EpochPlan:
        sampling, streams = self._sampling, self._sampling.num_streams
        if sampling.window_shards and self._shards is not None:
            return WindowedPlan(self._shards, sampling, seed=self._seed, epoch=epoch)
        groups = Groups(self._class_rows, sampling.group_size, self._firsts, key_of(self._seed, _SAMPLES))
        key = key_of(self._seed, _LAYOUT, epoch)
        if sampling.name == "all_positives":
            by_size = lay_by_size(self._firsts, self._class_rows.counts, sampling, key)
            return SamplePlan(by_size, groups, num_streams=streams, epoch=epoch)
        if sampling.name == "hierarchical" and self._super_classes is not None:
            blocks = lay_blocks(self._firsts, self._super_classes, sampling, key)
            return GroupPlan(blocks, groups, num_streams=streams, epoch=epoch)
        num_steps = sampling.num_steps(int(self._firsts[-1]))
        return GroupPlan(Rows(fill_rows(self._firsts, num_steps, key)), groups, num_streams=streams, epoch=epoch)
