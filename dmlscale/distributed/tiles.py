"""Reductions over a block, tile by tile, recomputing each tile in the backward pass (gradients.py).

What is kept between forward and backward is one number per row or column. A tile is a matrix product of a few
hundred rows and columns; its score, its mask and its gradient live in cache and are gone with the next tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dmlscale.distributed.assignment import SoftAssignment
from dmlscale.distributed.grid import Cell, Grid
from dmlscale.losses.block import LOG_OF_NOTHING, SMALLEST_SQUARED_DISTANCE, Axis, Score, Tile, Where
from dmlscale.losses.scores import ScaledSimilarity, named

# exp() of a float32 stays normal, and sums of up to e^24 = 2.6e10 terms finite, within this half range.
SAFE_HALF_RANGE = 64.0
# A sum of exp(score - upper bound) above this has lost nothing that matters to underflow.
SMALLEST_TRUSTED_SUM = 1e-20


@dataclass(frozen=True)
class Reduction:
    """What to reduce, and over which tiles.

    Args:
        grid: labels and tile sizes.
        score: elementwise function of a tile.
        kind: sum of all scores, or log-sum-exp along ``over``.
        over: the axis that is reduced away by "logsumexp".
        where: which entries count.
        on_sphere: rows and columns have length one.
        assignment: K centers per class -> one similarity per class; None for one column per class or sample.
        combine: (maximum or shift, sum) per row, partial on each rank -> global log-sum-exp.
        num_row_vectors: how many of the extra vectors are per row; the others are per column.
        shift: keeps ``exp(score - shift)`` in range for every entry; None where no such number is known.
    """

    grid: Grid
    score: Score
    kind: Literal["sum", "logsumexp"]
    over: Axis
    where: Where
    on_sphere: bool
    assignment: SoftAssignment | None
    combine: Callable[[Tensor, Tensor], Tensor]
    num_row_vectors: int = 0
    shift: float | None = None

    @property
    def depth(self) -> int:
        """Raw columns per column: K centers of a class, else 1."""
        return self.assignment.centers_per_class if self.assignment else 1


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
    """The tensors of a block: rows (r, d), columns (c * K, d), and vectors along either side."""

    rows: Tensor
    columns: Tensor
    row_norms: Tensor | None  # (r,) squared lengths; None on the sphere
    column_norms: Tensor | None  # (c,)
    vectors: tuple[Tensor, ...]
    scratch: Scratch

    @classmethod
    def of(cls, reduction: Reduction, rows: Tensor, columns: Tensor, vectors: tuple[Tensor, ...]) -> Sides:
        """The sides with their squared lengths, where those matter."""
        scratch = Scratch(rows)
        if reduction.on_sphere:
            return cls(rows, columns, None, None, vectors, scratch)
        return cls(rows, columns, rows.square().sum(1), columns.square().sum(1), vectors, scratch)

    def similarity(self, cell: Cell, depth: int = 1) -> Tensor:
        """(r, c * K) dot products of a cell, in the scratch memory."""
        rows, columns = self.rows[cell.top : cell.bottom], self.columns[cell.left * depth : cell.right * depth]
        return torch.mm(rows, columns.T, out=self.scratch.take(len(rows), len(columns)))

    def squared_distance(self, cell: Cell, similarity: Tensor | None = None) -> Tensor:
        """(r, c) squared distances of a cell; in the scratch memory if its similarities are not given."""
        rows, columns = self.rows[cell.top : cell.bottom], self.columns[cell.left : cell.right]
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


def reduce_tiles(reduction: Reduction, rows: Tensor, columns: Tensor, *vectors: Tensor) -> Tensor:
    """The reduction's value: () for a sum, (r,) or (c,) for a log-sum-exp. Differentiable in all tensors."""
    from dmlscale.distributed.gradients import TileReduction

    score = named(reduction.score)
    if score is not None and reduction.on_sphere and reduction.kind == "logsumexp":
        low, high = score.range_on_sphere()
        if (high - low) / 2 <= SAFE_HALF_RANGE:
            reduction = replace(reduction, shift=(low + high) / 2)
    if isinstance(score, ScaledSimilarity) and reduction.assignment is None:
        # The scale moves from every entry of the matrix to the rows.
        rows = rows * score.scale
        reduction = replace(reduction, score=ScaledSimilarity(1.0, score.shift))
    value: Tensor = TileReduction.apply(reduction, rows, columns, *vectors)
    return value


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
    """The tile's similarities (r, c), and the raw ones (r, c * K), the same where K = 1."""
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


def total(reduction: Reduction, sides: Sides) -> Tensor:
    """Sum of the scores of all entries -> ()."""
    result = sides.rows.new_zeros(())
    for cell in reduction.grid.cells(reduction.where):
        values = tile_values(reduction, sides, cell)
        if cell.mixed:
            reduction.grid.blank(values, cell, reduction.where, 0.0)
        result += values.sum()
    return result


def logsumexp(reduction: Reduction, sides: Sides) -> Tensor:
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


def _span(reduction: Reduction, sides: Sides) -> tuple[int, int, Callable[[Cell], slice]]:
    """The dimension summed away, the length of the result, and the part of it a cell adds to."""
    if reduction.over == "columns":
        return 1, len(sides.rows), lambda cell: slice(cell.top, cell.bottom)
    return 0, len(sides.columns) // reduction.depth, lambda cell: slice(cell.left, cell.right)


def _sums_of_exp(reduction: Reduction, sides: Sides, shift: float) -> Tensor:
    dim, length, part = _span(reduction, sides)
    sums = sides.rows.new_zeros(length)
    for cell in reduction.grid.cells(reduction.where):
        values = tile_values(reduction, sides, cell, minus=shift).exp_()
        if cell.mixed:
            reduction.grid.blank(values, cell, reduction.where, 0.0)
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
        sums[at] += values.sub_(higher.unsqueeze(dim)).exp_().sum(dim)
    return highest, sums


def apply_reduction(reduction: Reduction, sides: Sides) -> Any:
    """The value of a reduction."""
    return total(reduction, sides) if reduction.kind == "sum" else logsumexp(reduction, sides)
