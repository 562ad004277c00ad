"""Whole rows of a pair block at a time, for miners; only the chosen entries have a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed.grid import Grid
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE, RowTile, Selection

# Entries of the similarity matrix that are alive at a time: 4 MB in fp32 on CPU stays near the cache.
ENTRIES_ON_CPU, ENTRIES_ON_GPU = 2**20, 2**27

Select = Callable[[RowTile], Selection]
Value = Callable[..., Tensor]


class Band:
    """`RowTile`: some consecutive rows against all columns, both sorted by label."""

    def __init__(self, grid: Grid, rows: Tensor, columns: Tensor, top: int, on_sphere: bool) -> None:
        bottom = top + len(rows)
        squared = (rows @ columns.T).mul_(-2)
        if on_sphere:
            squared.add_(2)
        else:
            squared.add_(rows.square().sum(1)[:, None]).add_(columns.square().sum(1)[None, :])
        self.squared_distance = squared.clamp_min_(SMALLEST_SQUARED_DISTANCE)
        self._start, self._stop = (edge[top:bottom, None] for edge in grid.class_ranges)
        longest = int((self._stop - self._start).max()) if len(rows) else 0
        offsets = torch.arange(longest, device=rows.device)
        # Padding repeats the class's last column rather than touching a column of another class.
        self._class_columns = torch.minimum(self._start + offsets, self._stop - 1)
        assert grid.own_column is not None
        own = grid.own_column[top:bottom, None]
        others = self._start + offsets[: max(0, longest - 1)]
        others = others + (others >= own)  # the row itself is left out
        self.positive_valid = others < self._stop
        self.positive_columns = torch.minimum(others, self._stop - 1)

    def fill_class(self, matrix: Tensor, value: float) -> None:
        """See `RowTile.fill_class`."""
        matrix.scatter_(1, self._class_columns, value)


def mine(grid: Grid, rows: Tensor, columns: Tensor, on_sphere: bool, select: Select, value: Value) -> Tensor:
    """Sum over each row's selected tuples of ``value(squared distances of each role)`` -> (r,)."""
    result: Tensor = _Mined.apply(grid, rows, columns, on_sphere, select, value)
    return result


class _Mined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grid: Grid, rows: Tensor, columns: Tensor, on_sphere: bool, select: Select, value: Value
    ) -> Tensor:
        ctx.setting = grid, on_sphere, select, value
        ctx.save_for_backward(rows, columns)
        # A selection no larger than the embeddings is kept; a larger one is mined again in the backward pass.
        ctx.kept = {}
        sums = rows.new_zeros(len(rows))
        for top, bottom in _bands(len(rows), len(columns), rows.device):
            chosen = _select(grid, rows, columns, top, bottom, on_sphere, select)
            squared = [_entries(rows[top:bottom], columns, c, on_sphere) for c in chosen.columns]
            sums[top:bottom] = value(*squared).masked_fill(~chosen.valid, 0.0).sum(1)
            if len(chosen.columns) * chosen.valid.shape[1] <= rows.shape[1]:
                ctx.kept[top] = chosen
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # A caller's autocast may span the backward pass; rows are mined again as they were.
        with torch.autocast(gradients[0].device.type, enabled=False):
            return _Mined._backward(ctx, *gradients)

    @staticmethod
    def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns = ctx.saved_tensors
        grid, on_sphere, select, value = ctx.setting
        to_rows, to_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        for top, bottom in _bands(len(rows), len(columns), rows.device):
            chosen = ctx.kept.get(top) or _select(grid, rows, columns, top, bottom, on_sphere, select)
            band = rows[top:bottom]
            squared = [_entries(band, columns, c, on_sphere) for c in chosen.columns]
            by_entry = _entry_gradients(value, squared, chosen.valid, gradients[0][top:bottom])
            for index, gradient in zip(chosen.columns, by_entry, strict=True):
                _scatter(band, columns, index, gradient, to_rows[top:bottom], to_columns)
        return None, to_rows, to_columns, None, None, None


def _bands(num_rows: int, num_columns: int, device: torch.device) -> list[tuple[int, int]]:
    entries = ENTRIES_ON_CPU if device.type == "cpu" else ENTRIES_ON_GPU
    height = max(1, min(512, entries // max(1, num_columns)))
    return [(top, min(top + height, num_rows)) for top in range(0, num_rows, height)]


def _select(
    grid: Grid, rows: Tensor, columns: Tensor, top: int, bottom: int, on_sphere: bool, select: Select
) -> Selection:
    return select(Band(grid, rows[top:bottom], columns, top, on_sphere))


def _entries(rows: Tensor, columns: Tensor, index: Tensor, on_sphere: bool) -> Tensor:
    """Squared distances of each row to its chosen columns: (r, m), a few rows' columns gathered at a time."""
    squared = rows.new_empty(index.shape)
    for part in _slices(index, rows.shape[1]):
        difference = columns[index[part]].sub_(rows[part, None, :])  # (r', m, d)
        squared[part] = difference.square_().sum(2)
    return squared.clamp_min_(SMALLEST_SQUARED_DISTANCE)


def _entry_gradients(value: Value, squared: list[Tensor], valid: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [entry.requires_grad_() for entry in squared]
        total = value(*leaves).masked_fill(~valid, 0.0).sum(1)
        found = torch.autograd.grad(total, leaves, gradient)
    # Equal points have no direction to move in.
    return tuple(by_entry * (leaf > SMALLEST_SQUARED_DISTANCE) for by_entry, leaf in zip(found, leaves, strict=True))


def _scatter(
    rows: Tensor, columns: Tensor, index: Tensor, gradient: Tensor, to_rows: Tensor, to_columns: Tensor
) -> None:
    """Adds d|x - y|^2 = 2 (x - y) per chosen entry to both ends."""
    for part in _slices(index, rows.shape[1]):
        towards = rows[part, None, :] - columns[index[part]]  # (r', m, d)
        towards.mul_(2 * gradient[part].unsqueeze(2))
        to_rows[part] += towards.sum(1)
        to_columns.index_add_(0, index[part].flatten(), towards.flatten(0, 1), alpha=-1)


def _slices(index: Tensor, dim: int) -> list[slice]:
    entries = ENTRIES_ON_CPU if index.device.type == "cpu" else ENTRIES_ON_GPU
    step = max(1, entries // max(1, index.shape[1] * dim))
    return [slice(start, start + step) for start in range(0, len(index), step)]
