"""What a plan is: which samples each stream gives to each batch of an epoch, the same for any number of ranks.

Words: a *batch* is the samples of one step over all ranks; a *stream* is one of N equal lanes that every batch is
dealt to. Rank r of W serves streams r, r + W, ...; so W decides who reads a sample and never which samples meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.errors import DataError


class EpochPlan(Protocol):
    """The batches of one epoch; a batch can be asked for without those before it."""

    num_steps: int
    num_streams: int

    def sub_batches(self, streams: Iterable[int], step: int) -> list[NDArray[np.int64]]:
        """For each of the ``streams`` the (b,) row ids that it gives to batch ``step``; costs little more than one."""
        ...

    def sub_batch(self, stream: int, step: int) -> NDArray[np.int64]:
        """(b,) row ids of the samples that ``stream`` gives to batch ``step``."""
        return self.sub_batches([stream], step)[0]

    def batch(self, step: int) -> NDArray[np.int64]:
        """(B,) row ids of the samples of the whole batch ``step``, by stream."""
        return np.concatenate(self.sub_batches(range(self.num_streams), step))


@dataclass(frozen=True, eq=False)
class ListedPlan(EpochPlan):
    """A plan that was written out."""

    num_steps: int
    num_streams: int
    order: NDArray[np.int64]  # (n,) row ids by step, then stream
    bounds: NDArray[np.int64]  # (num_steps * num_streams + 1,) where each sub-batch begins in ``order``

    def sub_batches(self, streams: Iterable[int], step: int) -> list[NDArray[np.int64]]:
        """See `EpochPlan`."""
        cells = [step * self.num_streams + stream for stream in streams]
        return [self.order[self.bounds[cell] : self.bounds[cell + 1]] for cell in cells]


def streams_of_rank(rank: int, num_ranks: int, num_streams: int) -> range:
    """The streams that ``rank`` serves: rank, rank + num_ranks, ...

    Raises:
        DataError: there are more ranks than streams, so that some rank would have none.
    """
    if num_ranks > num_streams:
        raise DataError(
            f"{num_ranks} workers share num_streams={num_streams}: at most one worker per stream; "
            f"raise num_streams (a divisor of classes_per_batch) or use fewer workers"
        )
    if not 0 <= rank < num_ranks:
        raise DataError(f"rank {rank} is not one of 0..{num_ranks - 1}")
    return range(rank, num_streams, num_ranks)
