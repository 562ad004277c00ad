"""Whole rows of a pair block at a time, for miners; only the chosen entries have a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed.columns import Columns
from dmlscale.distributed.entries import add_gradient, distances_at, entries_at_a_time
from dmlscale.distributed.grid import Grid
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE, RowTile, Selection
from dmlscale.losses.draws import Chance

Select = Callable[[RowTile], Selection]
Value = Callable[..., Tensor]


class Mining(NamedTuple):
    """How rows are mined.

    Args:
        grid: labels of the block.
        on_sphere: rows and columns have length one.
        select: the miner.
        value: of the squared distances of each role.
        chance: its random numbers.
        row_ids: (r,) identities of the rows, for random numbers that do not depend on the number of ranks.
        column_ids: (c,) of the columns.
    """

    grid: Grid
    on_sphere: bool
    select: Select
    value: Value
    chance: Chance
    row_ids: Tensor
    column_ids: Tensor


class Band:
    """`RowTile`: some consecutive rows against all columns, both sorted by label."""

    def __init__(self, mining: Mining, rows: Tensor, columns: Columns, top: int) -> None:
        everyone = columns.strip(0, len(columns))
        squared = (rows @ everyone.T).mul_(-2)
        if mining.on_sphere:
            squared.add_(2)
        else:
            squared.add_(rows.square().sum(1)[:, None]).add_(columns.squared_lengths()[None, :])
        self.squared_distance = squared.clamp_min_(SMALLEST_SQUARED_DISTANCE)
        self.dim = rows.shape[1]
        band = slice(top, top + len(rows))
        start, stop = (edge[band, None] for edge in mining.grid.class_ranges)
        longest = int((stop - start).max()) if len(rows) else 0
        # Padding repeats the class's last column rather than touching a column of another class.
        self._class_columns = torch.minimum(start + torch.arange(longest, device=rows.device), stop - 1)
        self.positive_columns, self.positive_valid = positive_columns(mining.grid, band)
        self._mining, self._band = mining, band

    def fill_class(self, matrix: Tensor, value: float) -> None:
        """See `RowTile.fill_class`."""
        matrix.scatter_(1, self._class_columns, value)

    def negative_at(self, fraction: Tensor) -> tuple[Tensor, Tensor]:
        """See `RowTile.negative_at`; a class is one range of columns, so this is arithmetic."""
        start, stop = (edge[self._band, None] for edge in self._mining.grid.class_ranges)
        number = self.squared_distance.shape[1] - (stop - start)
        place = (fraction * number).long().clamp_max(number - 1).clamp_min(0)
        return torch.where(number > 0, place + (place >= start) * (stop - start), start), number > 0

    def draws(self) -> Tensor:
        """See `RowTile.draws`."""
        m = self._mining
        return m.chance.uniform(m.row_ids[self._band, None], m.column_ids[self.positive_columns])


def positive_columns(grid: Grid, band: slice) -> tuple[Tensor, Tensor]:
    """Columns of the same class as each row of a band, the row itself left out: (r, m) columns, (r, m) valid."""
    start, stop = (edge[band, None] for edge in grid.class_ranges)
    assert grid.own_column is not None
    longest = int((stop - start).max()) if len(start) else 0
    others = start + torch.arange(max(0, longest - 1), device=start.device)
    others = others + (others >= grid.own_column[band, None])
    return torch.minimum(others, stop - 1), others < stop


def mine(mining: Mining, rows: Tensor, columns: Columns) -> Tensor:
    """Sum over each row's selected tuples of ``value(squared distances of each role)`` -> (r,)."""
    result: Tensor = _Mined.apply(columns.handle, mining, rows, columns)
    return result


class _Mined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handle: Tensor, mining: Mining, rows: Tensor, columns: Columns) -> Tensor:
        ctx.setting = mining, columns
        ctx.save_for_backward(rows)
        # A selection no larger than the embeddings is kept; a larger one is mined again in the backward pass.
        ctx.kept = kept = _Kept(mining, rows)
        sums = rows.new_zeros(len(rows))
        for top, bottom in _bands(len(rows), len(columns), rows.device):
            band = rows[top:bottom]
            chosen = mining.select(Band(mining, band, columns, top))
            squared = [distances_at(band, columns, c) for c in chosen.columns]
            sums[top:bottom] = mining.value(*squared).masked_fill(~chosen.valid, 0.0).sum(1)
            kept.put(top, bottom, chosen)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        mining, columns = ctx.setting
        to_rows, to_columns = torch.zeros_like(rows), columns.gradient()
        # A caller's autocast may span the backward pass; rows are mined again as they were.
        with torch.autocast(gradients[0].device.type, enabled=False):
            for top, bottom in _bands(len(rows), len(columns), rows.device):
                band = rows[top:bottom]
                chosen = ctx.kept.get(top, bottom) or mining.select(Band(mining, band, columns, top))
                squared = [distances_at(band, columns, c) for c in chosen.columns]
                by_entry = _entry_gradients(mining.value, squared, chosen.valid, gradients[0][top:bottom])
                for index, gradient in zip(chosen.columns, by_entry, strict=True):
                    add_gradient(band, columns, index, gradient, to_rows[top:bottom], to_columns)
        return rows.new_zeros(()), None, to_rows, None


class _Kept:
    """Selections of all bands, in memory taken at once: pieces that outlive their band would hold its pages."""

    def __init__(self, mining: Mining, rows: Tensor) -> None:
        start, stop = mining.grid.class_ranges
        self._width = int((stop - start).max()) if len(rows) else 0
        size = (len(rows), min(2, rows.shape[1] // max(1, self._width)), self._width)
        self._columns = torch.zeros(size, dtype=torch.int64, device=rows.device)
        self._valid = torch.zeros((len(rows), self._width), dtype=torch.bool, device=rows.device)
        self._shapes: dict[int, tuple[int, int]] = {}

    def put(self, top: int, bottom: int, chosen: Selection) -> None:
        roles, width = len(chosen.columns), chosen.valid.shape[1]
        if roles > self._columns.shape[1] or width > self._width:
            return
        for n, columns in enumerate(chosen.columns):
            self._columns[top:bottom, n, :width] = columns
        self._valid[top:bottom, :width] = chosen.valid
        self._shapes[top] = roles, width

    def get(self, top: int, bottom: int) -> Selection | None:
        if top not in self._shapes:
            return None
        roles, width = self._shapes[top]
        columns = tuple(self._columns[top:bottom, n, :width] for n in range(roles))
        return Selection(columns, self._valid[top:bottom, :width])


def _bands(num_rows: int, num_columns: int, device: torch.device) -> list[tuple[int, int]]:
    # A miner makes several matrices of a band's size.
    most = 512 if device.type == "cpu" else 4096
    height = max(1, min(most, entries_at_a_time(device) // 4 // max(1, num_columns)))
    return [(top, min(top + height, num_rows)) for top in range(0, num_rows, height)]


def _entry_gradients(value: Value, squared: list[Tensor], valid: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [entry.requires_grad_() for entry in squared]
        total = value(*leaves).masked_fill(~valid, 0.0).sum(1)
        found = torch.autograd.grad(total, leaves, gradient)
    # Equal points have no direction to move in.
    return tuple(by_entry * (leaf > SMALLEST_SQUARED_DISTANCE) for by_entry, leaf in zip(found, leaves, strict=True))
