"""Gradient through the squared lengths in a distance."""

from __future__ import annotations

from torch import Tensor

from dmlscale.distributed.columns import row_slices
from dmlscale.distributed.grid import Cell
from dmlscale.distributed.sides import Sides


class Norms:
    """``D^2 = |x|^2 + |y|^2 - 2 x.y``: beside its products a row gets -x times the sum of its tile gradients.

    Nothing to do on the sphere, where lengths are one.
    """

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._sums: tuple[Tensor, Tensor] | None = None  # by row, by column

    def add(self, cell: Cell, by_similarity: Tensor) -> None:
        """Counts a tile's gradient by similarities, as far as it came through distances."""
        if self._sides.on_sphere:
            return
        if self._sums is None:
            rows = self._sides.rows
            self._sums = rows.new_zeros(len(rows)), rows.new_zeros(len(self._sides.columns))
        self._sums[0][cell.top : cell.bottom] += by_similarity.sum(1)
        self._sums[1][cell.left : cell.right] += by_similarity.sum(0)

    def finish(self, to_rows: Tensor, to_columns: Tensor | None) -> None:
        """Adds what was counted to the gradients of both sides, or of the rows alone."""
        if self._sums is None:
            return
        by_row, by_column = self._sums
        to_rows.addcmul_(by_row[:, None], self._sides.rows, value=-1)
        if to_columns is None:
            return
        for part in row_slices(to_columns):
            to_columns[part].addcmul_(by_column[part, None], self._sides.columns.at(part), value=-1)
