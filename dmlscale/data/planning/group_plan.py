"""Plans that are looked up, not written out: a layout says which groups make a batch, `Groups` which samples those are.

The memory is that of the layout, 4 bytes per group; a batch of B samples costs O(B).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.planning.groups import Groups
from dmlscale.data.planning.plan import EpochPlan
from dmlscale.data.planning.rows import EMPTY


class Layout(Protocol):
    """Which groups make a batch."""

    @property
    def num_steps(self) -> int:
        """Batches."""
        ...

    def groups(self, step: int) -> NDArray[np.int32]:
        """(g,) numbers of the groups of batch ``step``."""
        ...


@dataclass(frozen=True, eq=False)
class Rows:
    """The layout that `fill_rows` makes."""

    cells: NDArray[np.int32]  # (rows, T) the group in each row of each batch, or EMPTY

    @property
    def num_steps(self) -> int:
        """T."""
        return self.cells.shape[1]

    def groups(self, step: int) -> NDArray[np.int32]:
        """See `Layout`."""
        column = self.cells[:, step]
        return column[column != EMPTY]


class _LaidOut(EpochPlan):
    """What both plans keep."""

    def __init__(self, layout: Layout, groups: Groups, *, num_streams: int, epoch: int) -> None:
        self.num_steps, self.num_streams = layout.num_steps, num_streams
        self._layout, self._groups, self._epoch = layout, groups, epoch


class GroupPlan(_LaidOut):
    """Streams of whole groups; those of a batch differ by at most one group.

    Args:
        layout: of the epoch.
        groups: that it names.
        num_streams: N; no batch has fewer groups.
        epoch: 0, 1, ...
    """

    def sub_batches(self, streams: Iterable[int], step: int) -> list[NDArray[np.int64]]:
        """See `EpochPlan`."""
        dealt = self._layout.groups(step)
        # The stream with one group more moves on from step to step.
        lanes = [dealt[(stream - step) % self.num_streams :: self.num_streams] for stream in streams]
        spans = self._groups.spans(np.concatenate(lanes), self._epoch)
        ends = np.cumsum(spans.sizes)[np.cumsum([len(lane) for lane in lanes]) - 1]
        return np.split(self._groups.all_rows(spans), ends[:-1])


class SamplePlan(_LaidOut):
    """Streams of samples, which cut groups in two; those of a batch differ by at most one sample.

    Args:
        layout: of the epoch.
        groups: that it names.
        num_streams: N; no batch has fewer samples.
        epoch: 0, 1, ...
    """

    def sub_batches(self, streams: Iterable[int], step: int) -> list[NDArray[np.int64]]:
        """See `EpochPlan`."""
        spans = self._groups.spans(self._layout.groups(step), self._epoch)
        ends = np.cumsum(spans.sizes)
        cuts = np.arange(self.num_streams + 1) * ends[-1] // self.num_streams
        lanes = [np.arange(cuts[stream], cuts[stream + 1]) for stream in streams]
        samples = np.concatenate(lanes)
        owners = np.searchsorted(ends, samples, "right")
        rows = self._groups.rows(spans, owners, samples - (ends - spans.sizes)[owners])
        return np.split(rows, np.cumsum([len(lane) for lane in lanes])[:-1])
