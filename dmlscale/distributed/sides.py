"""The tensors of a block, cut into the operands of one tile's product."""

from __future__ import annotations

from typing import NamedTuple

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


class Sides(NamedTuple):
    """Rows (r, d), columns (c * K, d), and vectors along either side."""

    rows: Tensor
    columns: Columns
    row_norms: Tensor | None  # (r,) squared lengths; None on the sphere
    column_norms: Tensor | None  # (c,)
    vectors: tuple[Tensor, ...]
    scratch: Scratch

    @classmethod
    def of(cls, rows: Tensor, columns: Columns, vectors: tuple[Tensor, ...] = (), *, on_sphere: bool) -> Sides:
        """The sides with their squared lengths, where those matter."""
        scratch = Scratch(rows)
        if on_sphere:
            return cls(rows, columns, None, None, vectors, scratch)
        return cls(rows, columns, rows.square().sum(1), columns.squared_lengths(), vectors, scratch)

    def similarity(self, cell: Cell, depth: int = 1) -> Tensor:
        """(r, K * c) dot products of a cell, in the scratch memory."""
        rows = self.rows[cell.top : cell.bottom]
        columns = self.columns.strip(cell.left * depth, cell.right * depth, depth)
        return torch.mm(rows, columns.T, out=self.scratch.take(len(rows), len(columns)))

    def squared_distance(self, cell: Cell, similarity: Tensor | None = None) -> Tensor:
        """(r, c) squared distances of a cell; in the scratch memory if its similarities are not given."""
        rows, columns = self.rows[cell.top : cell.bottom], self.columns.strip(cell.left, cell.right)
        row_norms, column_norms = self.row_norms, self.column_norms
        offset = rows.new_full((1,), 2.0) if column_norms is None else column_norms[None, cell.left : cell.right]
        if similarity is None:
            squared = self.scratch.take(len(rows), len(columns))
            torch.addmm(offset, rows, columns.T, alpha=-2, out=squared)
        else:
            squared = torch.add(offset, similarity, alpha=-2)
        if row_norms is not None:
            squared.add_(row_norms[cell.top : cell.bottom, None])
        return squared.clamp_min_(SMALLEST_SQUARED_DISTANCE)
