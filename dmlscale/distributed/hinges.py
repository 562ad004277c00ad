"""Sums of hinges over the negatives of each row, several thresholds per row in one sweep (all triplets, contrastive).

For every row i and threshold t: ``sum_n relu(t - D_in)^power`` over its negatives n, and how many terms are positive.
The gradient of the plain hinge is a count, so neither pass needs more than comparisons beside the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed.columns import Columns
from dmlscale.distributed.grid import Cell, Grid
from dmlscale.distributed.norms import Norms
from dmlscale.distributed.sides import Scratch, Sides
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE
from dmlscale.losses.scores import ZERO_DISTANCE


@dataclass(frozen=True)
class HingeSums:
    """What to sum.

    Args:
        grid: labels and tile sizes.
        on_sphere: rows and columns have length one.
        squared: D is the squared Euclidean distance.
        power: of the hinge.
    """

    grid: Grid
    on_sphere: bool
    squared: bool
    power: Literal[1, 2]


def hinge_sums(
    setting: HingeSums, rows: Tensor, columns: Columns, thresholds: Tensor, above: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sum and number of the positive hinges of each row -> (r,) both.

    Args:
        setting: what to sum.
        rows: (r, d).
        columns: of the block.
        thresholds: (r, m); -inf counts nothing. Differentiable.
        above: (r, m) only distances above it count; None for all.
    """
    sums, count = _Hinges.apply(setting, columns, rows, columns.handle, thresholds, above)
    return sums, count


def _distances(setting: HingeSums, sides: Sides, cell: Cell) -> Tensor:
    """(r, c) distances of a cell; infinite where the column is no negative."""
    distance = sides.squared_distance(cell)
    if not setting.squared:
        distance.sqrt_()
    return setting.grid.blank(distance, cell, "negative", torch.inf) if cell.mixed else distance


def _depths(setting: HingeSums, thresholds: Tensor) -> dict[int, int]:
    """How many thresholds the rows of a band have at most, by its first row: a large class costs its own rows only."""
    numbers, height = (thresholds > -torch.inf).sum(1), setting.grid.tile_rows
    tops = range(0, len(numbers), height)
    most = [numbers[top : top + height].max() for top in tops]
    # All at once: each one that is read waits for the device.
    return dict(zip(tops, torch.stack(most).tolist() if most else [], strict=True))


def _hinge(distance: Tensor, threshold: Tensor, above: Tensor | None, out: Tensor) -> Tensor:
    hinge = torch.sub(threshold[:, None], distance, out=out).clamp_min_(0)
    return hinge if above is None else hinge.mul_(distance > above[:, None])


class _Hinges(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        setting: HingeSums,
        columns: Columns,
        rows: Tensor,
        handle: Tensor,
        thresholds: Tensor,
        above: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        sides, scratch = Sides(rows, columns, on_sphere=setting.on_sphere), Scratch(rows)
        sums, count = rows.new_zeros(len(rows)), rows.new_zeros(len(rows))
        depths = _depths(setting, thresholds)
        for cell in setting.grid.cells("negative"):
            band = slice(cell.top, cell.bottom)
            distance = _distances(setting, sides, cell)
            for j in range(depths[cell.top]):
                lower = None if above is None else above[band, j]
                hinge = _hinge(distance, thresholds[band, j], lower, scratch.take(*distance.shape))
                sums[band] += hinge.sum(1) if setting.power == 1 else hinge.square().sum(1)
                count[band] += hinge.sign_().sum(1)
        ctx.setting = setting, columns
        ctx.save_for_backward(rows, thresholds, above)
        ctx.mark_non_differentiable(count)
        return sums, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, thresholds, above = ctx.saved_tensors
        setting, columns = ctx.setting
        # A caller's autocast may span the backward pass.
        with torch.autocast(gradients[0].device.type, enabled=False):
            to_rows, to_thresholds = _gradient(setting, rows, columns, thresholds, above, gradients[0])
        return None, None, to_rows, rows.new_zeros(()), to_thresholds, None


def _gradient(
    setting: HingeSums, rows: Tensor, columns: Columns, thresholds: Tensor, above: Tensor | None, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    sides, scratch, total = Sides(rows, columns, on_sphere=setting.on_sphere), Scratch(rows), Scratch(rows)
    to_rows, to_thresholds, to_columns = torch.zeros_like(rows), torch.zeros_like(thresholds), columns.gradient()
    norms, depths = Norms(sides), _depths(setting, thresholds)
    for cell in setting.grid.cells("negative"):
        band = slice(cell.top, cell.bottom)
        distance = _distances(setting, sides, cell)
        by_distance = total.take(*distance.shape).zero_()
        for j in range(depths[cell.top]):
            lower = None if above is None else above[band, j]
            slope = _hinge(distance, thresholds[band, j], lower, scratch.take(*distance.shape))
            slope = slope.sign_() if setting.power == 1 else slope.mul_(2)
            to_thresholds[band, j] += slope.sum(1)
            by_distance.add_(slope)
        # d(t - D)/ds = 1/D for the distance and 2 for its square.
        if setting.squared:
            by_similarity = by_distance.mul_(2 * gradient[band, None])
            by_similarity.masked_fill_(distance <= SMALLEST_SQUARED_DISTANCE, 0.0)
        else:
            by_similarity = by_distance.mul_(gradient[band, None])
            by_similarity.div_(torch.threshold_(distance, ZERO_DISTANCE, torch.inf))
        norms.add(cell, by_similarity)
        to_rows[band].addmm_(by_similarity, columns.strip(cell.left, cell.right))
        columns.add_gradient(to_columns, cell.left, cell.right, by_similarity, rows[band])
    norms.finish(to_rows, to_columns)
    return to_rows, to_thresholds.mul_(gradient[:, None])
