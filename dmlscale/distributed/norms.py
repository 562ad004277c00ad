"""Gradient through the squared lengths in a distance."""

from __future__ import annotations

from torch import Tensor

from dmlscale.distributed.grid import Cell
from dmlscale.distributed.sides import Sides


class Norms:
    """``D^2 = |x|^2 + |y|^2 - 2 x.y``: beside its products a row gets -x times the sum of its tile gradients.

    Nothing to do on the sphere, where lengths are one.
    """

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._needed = sides.row_norms is not None
        self._by_row = sides.rows.new_zeros(len(sides.rows) if self._needed else 0)
        self._by_column = sides.rows.new_zeros(len(sides.columns) if self._needed else 0)

    def add(self, cell: Cell, by_similarity: Tensor) -> None:
        """Counts a tile's gradient by similarities, as far as it came through distances."""
        if self._needed:
            self._by_row[cell.top : cell.bottom] += by_similarity.sum(1)
            self._by_column[cell.left : cell.right] += by_similarity.sum(0)

    def finish(self, to_rows: Tensor, to_columns: Tensor | None) -> None:
        """Adds what was counted to the gradients of both sides, or of the rows alone."""
        if not self._needed:
            return
        to_rows.addcmul_(self._by_row[:, None], self._sides.rows, value=-1)
        if to_columns is not None:
            to_columns.addcmul_(self._by_column[:, None], self._sides.columns.raw, value=-1)
