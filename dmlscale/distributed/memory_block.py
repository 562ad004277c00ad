"""Samples x (samples and memory): a rank owns the columns of its own samples and of its slots of the memory."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.column_block import ColumnBlock, Part
from dmlscale.distributed.columns import Columns
from dmlscale.distributed.grid import Grid
from dmlscale.distributed.hinges import HingeSums, hinge_sums
from dmlscale.distributed.memory_bank import MemoryBank
from dmlscale.distributed.reductions import counts
from dmlscale.distributed.world import World
from dmlscale.losses.block import Axis, Where


class MemoryBlock(ColumnBlock):
    """The global batch against itself and against a cross-batch memory, which gets no gradient.

    Communication: that of `ColumnBlock`; what is in the memory never travels.

    Args:
        batch: this rank's embeddings, labels and identities.
        memory: its filled slots become columns; see `enter` for the new ones.
        world: the ranks.
        on_sphere: whether embeddings have length one.
        use_memory: False leaves the memory out, for the first steps of a run.
    """

    kind = "a pair block with a cross-batch memory"

    def __init__(
        self, batch: LocalBatch, memory: MemoryBank, world: World, *, on_sphere: bool, use_memory: bool = True
    ) -> None:
        super().__init__(batch, world, on_sphere=on_sphere)
        self.num_columns = len(self._rows) + (memory.num_held if use_memory else 0)
        dtype = batch.embeddings.dtype
        order = batch.order()
        present = Columns(batch.embeddings[order], dtype=dtype, unit=False)
        own = torch.full_like(self._row_labels, -1)
        own[self._places[order]] = torch.arange(len(order), device=order.device)
        past, past_labels = memory.held()
        if not use_memory:
            past, past_labels = past[:0], past_labels[:0]
        by_label = past_labels.argsort(stable=True)
        self._parts = (
            Part(present, Grid.of(self._row_labels, batch.labels[order], own)),
            # In their order, but not copied. A sample is no column of the memory: none is its own.
            Part(
                Columns(past, dtype=dtype, unit=False, order=by_label),
                Grid.of(self._row_labels, past_labels[by_label], torch.full_like(self._row_labels, -1)),
            ),
        )
        self.probe = self.probe + present.handle

    def enter(self, memory: MemoryBank) -> None:
        """Puts the global batch into the memory."""
        order = self._row_ids.argsort(stable=True)
        memory.enter(self._rows.detach()[order], self._row_labels[order])

    def count(self, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.count`. Over columns one all-reduce of (B,)."""
        if over == "rows":
            self._refuse("count() over rows", "columns of the memory are no rows")
        number = torch.zeros_like(self._row_labels)
        for part in self._parts:
            same, own = counts(self._row_labels, part.grid.column_labels), part.grid.own_column
            assert own is not None
            number += same - (own >= 0).long() if where == "positive" else len(part.columns) - same
        return collectives.sum_over_ranks(number.to(self._rows.dtype), self._world)

    def hinge_sums(
        self, thresholds: Tensor, *, squared: bool, power: Literal[1, 2] = 1, above: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.hinge_sums`. One all-reduce of (B, 2)."""
        mine = collectives.used_by_parts(thresholds, self._world)
        local = []
        for part in self._parts:
            setting = HingeSums(part.grid, self._on_sphere, squared, power)
            local.append(torch.stack(hinge_sums(setting, self._rows, part.columns, mine, above), 1))
        sums, count = collectives.sum_over_ranks(local[0] + local[1], self._world).unbind(1)
        return sums, count.detach()
