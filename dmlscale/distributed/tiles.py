"""Reductions over a block, tile by tile, recomputing each tile in the backward pass (gradients.py).

What is kept between forward and backward is one number per row or column. A tile is a matrix product of a few
hundred rows and columns; its score, its mask and its gradient live in cache and are gone with the next tile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from dmlscale.distributed.assignment import SoftAssignment
from dmlscale.distributed.columns import Columns
from dmlscale.distributed.grid import Cell, Grid
from dmlscale.distributed.sides import Sides
from dmlscale.losses.block import LOG_OF_NOTHING, Axis, Score, Tile, Where
from dmlscale.losses.scores import named

# exp() of a float32 stays normal, and sums of up to e^24 = 2.6e10 terms finite, within this half range.
SAFE_HALF_RANGE = 64.0
# A sum of exp(score - upper bound) above this has lost nothing that matters to underflow.
SMALLEST_TRUSTED_SUM = 1e-20

Kind = Literal["sum", "row_sum", "logsumexp", "logsumexp_and_maximum"]


@dataclass(frozen=True)
class Reduction:
    """What to reduce, and over which tiles.

    Args:
        grid: labels and tile sizes.
        score: elementwise function of a tile.
        kind: sum of all scores, of each row's scores, or log-sum-exp along ``over``, with each row's highest score.
        over: the axis that is reduced away by "logsumexp".
        where: which entries count.
        on_sphere: rows and columns have length one.
        assignment: K centers per class -> one similarity per class; None for one column per class or sample.
        combine: (maximum or shift, sum) per row, partial on each rank -> global log-sum-exp.
        num_row_vectors: how many of the extra vectors are per row; the others are per column.
        mirror: makes a per-row vector per column, where rows and columns are the same samples: the backward pass of
            a symmetric score then needs no gradient by columns.
        shift: keeps ``exp(score - shift)`` in range for every entry; None where no such number is known.
    """

    grid: Grid
    score: Score
    kind: Kind
    over: Axis
    where: Where
    on_sphere: bool
    assignment: SoftAssignment | None
    combine: Callable[[Tensor, Tensor], Tensor]
    num_row_vectors: int = 0
    mirror: Callable[[Tensor], Tensor] | None = None
    shift: float | None = None

    @property
    def is_log(self) -> bool:
        """Whether the result is a log-sum-exp."""
        return self.kind in ("logsumexp", "logsumexp_and_maximum")

    @property
    def depth(self) -> int:
        """Raw columns per column: K centers of a class, else 1."""
        return self.assignment.centers_per_class if self.assignment else 1


def reduce_tiles(reduction: Reduction, rows: Tensor, columns: Columns, *vectors: Tensor) -> Tensor:
    """The reduction's value: () for a sum, (r,) or (c,) for others. Differentiable in rows, columns and vectors."""
    return _apply(reduction, rows, columns, vectors)[0]


def reduce_with_maximum(reduction: Reduction, rows: Tensor, columns: Columns, *vectors: Tensor) -> tuple[Tensor, ...]:
    """Log-sum-exp (r,), and without gradient this rank's highest score (r,) of each row."""
    return _apply(replace(reduction, kind="logsumexp_and_maximum"), rows, columns, vectors)


def _apply(reduction: Reduction, rows: Tensor, columns: Columns, vectors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    from dmlscale.distributed.gradients import TileReduction

    score = named(reduction.score)
    if score is not None and reduction.on_sphere and reduction.is_log:
        ends = score.range_on_sphere()
        if ends is not None and (ends[1] - ends[0]) / 2 <= SAFE_HALF_RANGE:
            reduction = replace(reduction, shift=(ends[0] + ends[1]) / 2)
    if score is not None and reduction.assignment is None:
        factor, left = score.absorbed()
        if factor != 1:
            # The factor moves from every entry of the matrix to the rows.
            rows, reduction = rows * factor, replace(reduction, score=left)
    values: tuple[Tensor, ...] = TileReduction.apply(reduction, columns, rows, columns.handle, *vectors)
    return values


def make_tile(reduction: Reduction, sides: Sides, cell: Cell, similarity: Tensor) -> Tile:
    """A tile with the parts of the extra vectors that belong to it."""
    n = reduction.num_row_vectors
    return Tile(
        similarity,
        lambda: sides.squared_distance(cell, similarity),
        tuple(vector[cell.top : cell.bottom, None] for vector in sides.vectors[:n]),
        tuple(vector[None, cell.left : cell.right] for vector in sides.vectors[n:]),
    )


def similarities(reduction: Reduction, sides: Sides, cell: Cell) -> tuple[Tensor, Tensor]:
    """The tile's similarities (r, c), and the raw ones (r, K * c), the same where K = 1."""
    raw = sides.similarity(cell, reduction.depth)
    return (reduction.assignment.assign(raw) if reduction.assignment else raw), raw


def distance_tile(sides: Sides, cell: Cell) -> Tile:
    """A tile for scores that look at the distance alone: its similarity is never formed."""
    return Tile(sides.rows, lambda: sides.squared_distance(cell))


def tile_values(reduction: Reduction, sides: Sides, cell: Cell, minus: float = 0.0) -> Tensor:
    """``score - minus`` of one tile (r, c), whose entries may be overwritten."""
    score = named(reduction.score)
    if score is not None and score.through == "distance":
        return score.minus(distance_tile(sides, cell), minus)
    tile = make_tile(reduction, sides, cell, similarities(reduction, sides, cell)[0])
    if score is not None:
        return score.minus(tile, minus)
    values = reduction.score(tile)
    return values - minus if minus else values


def apply_reduction(reduction: Reduction, sides: Sides) -> tuple[Tensor, ...]:
    """The value of a reduction, alone or with the highest scores."""
    if reduction.kind == "logsumexp_and_maximum":
        return _with_maximum(reduction, sides)
    return (_logsumexp(reduction, sides) if reduction.is_log else _total(reduction, sides),)


def _total(reduction: Reduction, sides: Sides) -> Tensor:
    """Sum of the scores of all entries -> (), or of each row's -> (r,)."""
    by_row = reduction.kind == "row_sum"
    result = sides.rows.new_zeros(len(sides.rows) if by_row else ())
    for cell in reduction.grid.cells(reduction.where):
        values = tile_values(reduction, sides, cell)
        if cell.mixed:
            reduction.grid.blank(values, cell, reduction.where, 0.0)
        if by_row:
            result[cell.top : cell.bottom] += values.sum(1)
        else:
            result += values.sum()
    return result


def _logsumexp(reduction: Reduction, sides: Sides) -> Tensor:
    """Log-sum-exp along one axis: with a constant shift where that is safe, else with a running maximum."""
    if reduction.shift is not None:
        sums = _sums_of_exp(reduction, sides, reduction.shift)
        return reduction.combine(torch.full_like(sums, reduction.shift), sums)
    score = named(reduction.score)
    if score is not None and score.upper_bound is not None:
        sums = _sums_of_exp(reduction, sides, score.upper_bound)
        if bool((sums > SMALLEST_TRUSTED_SUM).all()):
            return reduction.combine(torch.full_like(sums, score.upper_bound), sums)
    return reduction.combine(*_running_maximum(reduction, sides))


def _with_maximum(reduction: Reduction, sides: Sides) -> tuple[Tensor, Tensor]:
    if reduction.shift is None:
        highest, sums = _running_maximum(reduction, sides)
        return reduction.combine(highest, sums), highest
    highest = sides.rows.new_full((len(sides.rows),), -torch.inf)
    sums = _sums_of_exp(reduction, sides, reduction.shift, highest)
    return reduction.combine(torch.full_like(sums, reduction.shift), sums), highest


def _span(reduction: Reduction, sides: Sides) -> tuple[int, int, Callable[[Cell], slice]]:
    """Axis of a tile to reduce, length of the result, and where a cell's part of it lies."""
    if reduction.over == "columns":
        return 1, len(sides.rows), lambda cell: slice(cell.top, cell.bottom)
    return 0, len(sides.columns) // reduction.depth, lambda cell: slice(cell.left, cell.right)


def _sums_of_exp(reduction: Reduction, sides: Sides, shift: float, highest: Tensor | None = None) -> Tensor:
    """Sums of ``exp(score - shift)`` along the axis; ``highest`` is filled with the highest scores of the rows."""
    dim, length, part = _span(reduction, sides)
    sums = sides.rows.new_zeros(length)
    for cell in reduction.grid.cells(reduction.where):
        values = tile_values(reduction, sides, cell, minus=shift)
        if highest is None:
            values.exp_()
            if cell.mixed:
                reduction.grid.blank(values, cell, reduction.where, 0.0)
        else:
            if cell.mixed:
                reduction.grid.blank(values, cell, reduction.where, -torch.inf)
            here = highest[cell.top : cell.bottom]
            torch.maximum(here, values.amax(1) + shift, out=here)
            values.exp_()
        sums[part(cell)] += values.sum(dim)
    return sums


def _running_maximum(reduction: Reduction, sides: Sides) -> tuple[Tensor, Tensor]:
    """(highest score, sum of exp(score - highest)) along the axis."""
    dim, length, part = _span(reduction, sides)
    sums = sides.rows.new_zeros(length)
    highest = torch.full_like(sums, LOG_OF_NOTHING)
    for cell in reduction.grid.cells(reduction.where):
        values = tile_values(reduction, sides, cell)
        if cell.mixed:
            reduction.grid.blank(values, cell, reduction.where, -torch.inf)
        at = part(cell)
        higher = torch.maximum(highest[at], values.amax(dim))
        sums[at] *= (highest[at] - higher).exp_()
        highest[at] = higher
        sums[at] += exp_flushed_(values.sub_(higher.unsqueeze(dim))).sum(dim)
    return highest, sums


def exp_flushed_(values: Tensor) -> Tensor:
    """``exp(values)`` in place, where nothing keeps them in range: what would be denormal becomes zero.

    Making and adding denormal numbers takes a processor a hundred times as long, and they change nothing.
    """
    lowest = math.log(torch.finfo(values.dtype).tiny)
    return torch.threshold_(values, lowest, -torch.inf).exp_()
