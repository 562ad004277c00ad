"""Plans for shards that are far away: an epoch takes a few of them at a time, and batches are made within these.

A *window* is up to M shards; the shards of an epoch are in random order, and the windows of an epoch follow each
other. Whoever reads ahead needs the shards of the window at hand and of the next, and none twice in an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.hashing import key_of, mix, order_by, random_order
from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.planning.group_plan import GroupPlan, Rows
from dmlscale.data.planning.groups import Groups
from dmlscale.data.planning.plan import EpochPlan
from dmlscale.data.planning.quotas import groups_of_class
from dmlscale.data.planning.rows import fill_rows
from dmlscale.data.planning.sampling import Sampling

IntArray = NDArray[np.int64]
_KEPT = 2  # windows: where one ends, threads work on its end and on the beginning of the next


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Where the rows of a split lie.

    Args:
        starts: (num_shards + 1,) shard s has the rows from ``starts[s]`` to below ``starts[s + 1]`` of the dataset.
        labels: (n_total,) class of every row of the dataset, below 2^32; perhaps memory-mapped.
        row_ids: (n,) rows of the split, ascending; a range where they lie together, which takes no memory; None if all
            rows are.
    """

    starts: IntArray
    labels: NDArray[np.integer]
    row_ids: IntArray | range | None = None

    @cached_property
    def bounds(self) -> IntArray:
        """(num_shards + 1,) where the rows of each shard begin among those of the split."""
        if isinstance(self.row_ids, range):
            return np.clip(self.starts, self.row_ids.start, self.row_ids.stop) - self.row_ids.start
        return self.starts if self.row_ids is None else np.searchsorted(self.row_ids, self.starts)

    def rows_of(self, shards: IntArray) -> IntArray:
        """(m,) row ids of the split in some shards, shard after shard."""
        parts = [np.arange(self.bounds[shard], self.bounds[shard + 1]) for shard in shards]
        positions = np.concatenate(parts)
        if isinstance(self.row_ids, range):
            return positions + self.row_ids.start
        return positions if self.row_ids is None else self.row_ids[positions]


def window_sizes(shards: ShardRows, window_shards: int) -> tuple[IntArray, IntArray]:
    """How the shards that hold rows of the split are cut into windows, as even as possible and none above M.

    Returns:
        The shards, and the (windows,) number of shards in each window, the smallest last.
    """
    used = np.flatnonzero(np.diff(shards.bounds))
    num_windows = -(-len(used) // window_shards)
    return used, np.diff(np.arange(num_windows + 1) * -len(used) // -num_windows)


class WindowedPlan(EpochPlan):
    """An epoch, window after window; every sample once.

    Making it counts the groups of every window; a window's own plan is made when one of its batches is asked for, and
    the last two are kept. The number of steps differs from epoch to epoch, because a class has more groups the more
    windows it is in.

    Args:
        shards: of the split.
        sampling: options that `check_plan` accepts.
        seed: of the run.
        epoch: 0, 1, ...
    """

    def __init__(self, shards: ShardRows, sampling: Sampling, *, seed: int, epoch: int) -> None:
        self._shards, self._sampling, self._key = shards, sampling, key_of(seed, epoch)
        used, sizes = window_sizes(shards, sampling.window_shards)
        order = used[random_order(len(used), self._key)]
        self._windows = np.split(order, np.cumsum(sizes)[:-1])
        self._ends = np.cumsum([sampling.num_steps(self._count_groups(window)) for window in self._windows])
        self.num_steps, self.num_streams = int(self._ends[-1]), sampling.num_streams
        self._plan_of_window = lru_cache(_KEPT)(self._make)
        self._lock = Lock()  # so that threads that ask for the same window do not all make it

    @property
    def num_windows(self) -> int:
        """Windows of the epoch."""
        return len(self._windows)

    def window_of(self, step: int) -> int:
        """The window that batch ``step`` is made of."""
        return int(np.searchsorted(self._ends, step, "right"))

    def shards_of_window(self, window: int) -> IntArray:
        """(m,) the shards, in the order they were drawn."""
        return self._windows[window]

    def sub_batches(self, streams: Iterable[int], step: int) -> list[IntArray]:
        """See `EpochPlan`."""
        window = self.window_of(step)
        with self._lock:
            plan = self._plan_of_window(window)
        return plan.sub_batches(streams, step - (int(self._ends[window - 1]) if window else 0))

    def _count_groups(self, window: IntArray) -> int:
        labels = np.sort(self._shards.labels[self._shards.rows_of(window)])
        return int(groups_of_class(np.diff(_runs(labels)), self._sampling.group_size).sum())

    def _make(self, window: int) -> GroupPlan:
        rows = self._shards.rows_of(self._windows[window])
        labels = self._shards.labels[rows]
        order = order_by(labels.astype(np.uint64))
        class_rows = ClassRows(rows[order], _runs(labels[order]))
        quotas = groups_of_class(class_rows.counts, self._sampling.group_size)
        firsts = np.concatenate(([0], np.cumsum(quotas)))
        key = mix(self._key ^ np.uint64(window))
        layout = Rows(fill_rows(firsts, self._sampling.num_steps(int(firsts[-1])), key))
        groups = Groups(class_rows, self._sampling.group_size, firsts, key)
        return GroupPlan(layout, groups, num_streams=self.num_streams, epoch=0)


def _runs(labels: NDArray[np.integer]) -> IntArray:
    """(classes + 1,) where each class begins in sorted labels, and their end."""
    return np.concatenate(([0], np.flatnonzero(np.diff(labels)) + 1, [len(labels)]))
