"""Squared distances at chosen entries of a pair block, O(entries x d), differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed.columns import Columns
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE

# Numbers that are alive at a time: 4 MB in fp32 on CPU stays near the cache.
ENTRIES_ON_CPU, ENTRIES_ON_GPU = 2**20, 2**27


def entries_at_a_time(device: torch.device) -> int:
    """How many numbers a miner or a gather of entries keeps at once."""
    return ENTRIES_ON_CPU if device.type == "cpu" else ENTRIES_ON_GPU


def squared_distances(rows: Tensor, columns: Columns, index: Tensor) -> Tensor:
    """(r, m) squared distances of each row to its columns ``index`` (r, m), with gradient."""
    distances: Tensor = _SquaredDistances.apply(columns.handle, columns, rows, index)
    return distances


def distances_at(rows: Tensor, columns: Columns, index: Tensor) -> Tensor:
    """The same without gradient, a few rows' columns gathered at a time."""
    squared = rows.new_empty(index.shape)
    for part in _slices(index, rows.shape[1]):
        difference = columns.at(index[part]).sub_(rows[part, None, :])  # (r', m, d)
        squared[part] = difference.square_().sum(2)
    return squared.clamp_min_(SMALLEST_SQUARED_DISTANCE)


def add_gradient(
    rows: Tensor, columns: Columns, index: Tensor, gradient: Tensor, to_rows: Tensor, to_columns: Tensor | None
) -> None:
    """Adds d|x - y|^2 = 2 (x - y) per chosen entry to both ends.

    Args:
        rows: (r, d).
        columns: of the block.
        index: (r, m) chosen columns.
        gradient: (r, m) by the squared distances.
        to_rows: (r, d) is added to.
        to_columns: (c, d) is added to, if there is one.
    """
    for part in _slices(index, rows.shape[1]):
        towards = rows[part, None, :] - columns.at(index[part])  # (r', m, d)
        towards.mul_(2 * gradient[part].unsqueeze(2))
        to_rows[part] += towards.sum(1)
        if to_columns is not None:
            to_columns.index_add_(0, index[part].flatten(), towards.flatten(0, 1), alpha=-1)


def _slices(index: Tensor, dim: int) -> list[slice]:
    step = max(1, entries_at_a_time(index.device) // max(1, index.shape[1] * dim))
    return [slice(start, start + step) for start in range(0, len(index), step)]


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handle: Tensor, columns: Columns, rows: Tensor, index: Tensor) -> Tensor:
        squared = distances_at(rows, columns, index)
        ctx.columns = columns
        ctx.save_for_backward(rows, index, squared)
        return squared

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, index, squared = ctx.saved_tensors
        to_rows = torch.zeros_like(rows)
        # Equal points have no direction to move in.
        gradient = gradients[0] * (squared > SMALLEST_SQUARED_DISTANCE)
        add_gradient(rows, ctx.columns, index, gradient, to_rows, ctx.columns.gradient())
        return rows.new_zeros(()), None, to_rows, None
