"""The tensors of a block, cut into the operands of one tile's product."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from dmlscale.distributed.columns import Columns
from dmlscale.distributed.grid import Cell
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE


class Scratch:
    """Memory for one product at a time: fresh pages for every tile would cost as much as a sweep over it."""

    def __init__(self, like: Tensor) -> None:
        self._memory = like.new_empty(0)

    def take(self, r: int, c: int) -> Tensor:
        """(r, c), valid until the next call."""
        if len(self._memory) < r * c:
            self._memory = self._memory.new_empty(r * c)
        return self._memory[: r * c].view(r, c)


class Sides:
    """Rows (r, d), columns (c * K, d), and vectors along either side.

    Args:
        rows: of this rank.
        columns: of this rank.
        vectors: per row first, then per column.
        on_sphere: rows and columns have length one.
    """

    def __init__(self, rows: Tensor, columns: Columns, vectors: tuple[Tensor, ...] = (), *, on_sphere: bool) -> None:
        self.rows, self.columns, self.vectors, self.on_sphere = rows, columns, vectors, on_sphere
        self._scratch = Scratch(rows)

    @cached_property
    def _row_norms(self) -> Tensor:
        return self.rows.square().sum(1)

    def similarity(self, cell: Cell, depth: int = 1) -> Tensor:
        """(r, K * c) dot products of a cell, in the scratch memory."""
        rows = self.rows[cell.top : cell.bottom]
        columns = self.columns.strip(cell.left * depth, cell.right * depth, depth)
        return torch.mm(rows, columns.T, out=self._scratch.take(len(rows), len(columns)))

    def squared_distance(self, cell: Cell, similarity: Tensor | None = None) -> Tensor:
        """(r, c) squared distances of a cell; in the scratch memory if its similarities are not given."""
        rows, columns = self.rows[cell.top : cell.bottom], self.columns.strip(cell.left, cell.right)
        if self.on_sphere:
            offset = rows.new_full((1,), 2.0)
        else:
            offset = self.columns.squared_lengths()[None, cell.left : cell.right]
        if similarity is None:
            squared = self._scratch.take(len(rows), len(columns))
            torch.addmm(offset, rows, columns.T, alpha=-2, out=squared)
        else:
            squared = torch.add(offset, similarity, alpha=-2)
        if not self.on_sphere:
            squared.add_(self._row_norms[cell.top : cell.bottom, None])
        return squared.clamp_min_(SMALLEST_SQUARED_DISTANCE)
