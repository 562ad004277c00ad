"""Cutting a label-sorted block into tiles that stay in cache, and knowing which tiles can hold a positive.

Rows and columns are sorted by label, so the positives of a few consecutive rows lie in one short range of columns
(their zone). Outside the zone every entry is a negative and no mask is formed: on CPU a mask costs more than an exp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dmlscale.losses.block import Where

ROWS_ON_CPU, COLUMNS_ON_CPU = 256, 512  # 0.5 MB in fp32: a tile and its companions stay in the L2 cache
ROWS_ON_GPU, COLUMNS_ON_GPU = 4096, 8192
# Of a band whose positives are looked at: the lower, the fewer negatives its zone covers; a GPU wants larger work.
POSITIVE_ROWS_ON_CPU, POSITIVE_ROWS_ON_GPU = 128, 2048


class Cell(NamedTuple):
    """Rows ``[top, bottom)`` and columns ``[left, right)`` of a block."""

    top: int
    bottom: int
    left: int
    right: int
    mixed: bool  # may hold entries of the row's own class


@dataclass(frozen=True)
class Grid:
    """The labels of a block, both sides sorted ascending, and its tile sizes.

    Args:
        row_labels: (r,) int64 ascending.
        column_labels: (c,) int64 ascending.
        own_column: (r,) position of each row among the columns in a pair block, where it is no pair with itself;
            None where rows and columns are different things; a negative entry is on another rank.
        tile_rows: rows of a tile.
        tile_columns: columns of a tile.
        one_positive: a row has one positive at most, as in a class block.
    """

    row_labels: Tensor
    column_labels: Tensor
    own_column: Tensor | None
    tile_rows: int
    tile_columns: int
    one_positive: bool

    @classmethod
    def of(
        cls,
        row_labels: Tensor,
        column_labels: Tensor,
        own_column: Tensor | None = None,
        *,
        one_positive: bool = False,
        depth: int = 1,
    ) -> Grid:
        """A grid with tile sizes for the device; ``depth`` is the number of raw columns per column (K centers)."""
        cpu = row_labels.device.type == "cpu"
        rows, columns = (ROWS_ON_CPU, COLUMNS_ON_CPU) if cpu else (ROWS_ON_GPU, COLUMNS_ON_GPU)
        return cls(row_labels, column_labels, own_column, rows, max(1, columns // depth), one_positive)

    def cells(self, where: Where) -> Iterator[Cell]:
        """The cells that can hold such entries: a band of rows at a time, or a strip of columns in a class block."""
        return self._by_strip(where) if self.one_positive else self._by_band(where)

    def _by_strip(self, where: Where) -> Iterator[Cell]:
        """A strip of classes meets all rows before the next one: it is normalised once."""
        zones = self._zones(self.tile_rows)
        for left in range(0, len(self.column_labels), self.tile_columns):
            right = min(left + self.tile_columns, len(self.column_labels))
            for (start, stop), top in zip(zones, range(0, len(self.row_labels), self.tile_rows), strict=True):
                mixed = start < right and stop > left
                if mixed or where == "negative":
                    yield Cell(top, min(top + self.tile_rows, len(self.row_labels)), left, right, mixed)

    def _by_band(self, where: Where) -> Iterator[Cell]:
        height = self.tile_rows
        if where == "positive":  # near the diagonal
            on_cpu = self.row_labels.device.type == "cpu"
            height = min(height, POSITIVE_ROWS_ON_CPU if on_cpu else POSITIVE_ROWS_ON_GPU)
        for (start, stop), top in zip(self._zones(height), range(0, len(self.row_labels), height), strict=True):
            bottom = min(top + height, len(self.row_labels))
            zones = [(start, stop, True)]
            if where == "negative":
                zones = [(0, start, False), (start, stop, True), (stop, len(self.column_labels), False)]
            for zone_start, zone_stop, mixed in zones:
                for left in range(zone_start, zone_stop, self.tile_columns):
                    yield Cell(top, bottom, left, min(left + self.tile_columns, zone_stop), mixed)

    def _zones(self, height: int) -> list[tuple[int, int]]:
        """For each band of rows, the range of columns whose label may equal that of one of its rows."""
        if len(self.row_labels) == 0:
            return []
        tops = torch.arange(0, len(self.row_labels), height, device=self.row_labels.device)
        lasts = (tops + height - 1).clamp_max(len(self.row_labels) - 1)
        starts = torch.searchsorted(self.column_labels, self.row_labels[tops])
        stops = torch.searchsorted(self.column_labels, self.row_labels[lasts], right=True)
        return [(a, b) for a, b in torch.stack([starts, stops], 1).tolist()]

    def blank(self, values: Tensor, cell: Cell, where: Where, filler: float) -> Tensor:
        """Overwrites, in place, the entries of a mixed cell that are not ``where``."""
        if self.one_positive:
            return self._blank_classes(values, cell, where, filler)
        same = self.row_labels[cell.top : cell.bottom, None] == self.column_labels[None, cell.left : cell.right]
        if where == "negative":
            return values.masked_fill_(same, filler)
        values.masked_fill_(~same, filler)
        if self.own_column is None:
            return values
        at, inside = _within(self.own_column[cell.top : cell.bottom], cell)
        return values.scatter_(1, at, values.gather(1, at).masked_fill_(inside, filler))

    def _blank_classes(self, values: Tensor, cell: Cell, where: Where, filler: float) -> Tensor:
        """The same for a class block, where a row has one positive: an index is cheaper than a mask."""
        at, inside = _within(self.class_ranges[0][cell.top : cell.bottom], cell)
        inside &= self._is_here(cell)[:, None]
        found = values.gather(1, at)
        if where == "negative":
            return values.scatter_(1, at, found.masked_fill_(inside, filler))
        return values.fill_(filler).scatter_(1, at, found.masked_fill_(~inside, filler))

    def _is_here(self, cell: Cell) -> Tensor:
        """Whether the class of each row is among the columns of this rank."""
        start, stop = self.class_ranges
        return stop[cell.top : cell.bottom] > start[cell.top : cell.bottom]

    @cached_property
    def class_ranges(self) -> tuple[Tensor, Tensor]:
        """For each row the range ``[start, stop)`` of columns of its own class: (r,) each."""
        return (
            torch.searchsorted(self.column_labels, self.row_labels),
            torch.searchsorted(self.column_labels, self.row_labels, right=True),
        )


def _within(columns: Tensor, cell: Cell) -> tuple[Tensor, Tensor]:
    """One column for each row as an index into a cell, and whether it lies there: (r, 1) both.

    What lies outside becomes the cell's edge, to be left as it is: looking for the others would wait for the device.
    """
    at = columns[:, None] - cell.left
    width = cell.right - cell.left
    return at.clamp(0, width - 1), (at >= 0) & (at < width)
