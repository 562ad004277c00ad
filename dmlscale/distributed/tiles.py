"""Reductions over a block, tile by tile, recomputing each tile in the backward pass.

What is kept between forward and backward is one number per row or column. A tile is a matrix product of a few
hundred rows and columns; its score, its mask and its gradient live in cache and are gone with the next tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dmlscale.distributed.assignment import SoftAssignment
from dmlscale.distributed.grid import Cell, Grid
from dmlscale.losses.block import LOG_OF_NOTHING, SMALLEST_SQUARED_DISTANCE, Axis, Score, Tile, Where

# exp() of a float32 stays normal, and sums of up to e^8 terms finite, within this half range.
SAFE_HALF_RANGE = 78.0


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

    def constant_shift(self) -> float | None:
        """A shift that keeps exp(score - shift) in range for every entry, where the score's range is known."""
        bounds = getattr(self.score, "range_on_sphere", None)
        if not self.on_sphere or bounds is None:
            return None
        low, high = bounds()
        return (low + high) / 2 if (high - low) / 2 <= SAFE_HALF_RANGE else None


class Sides(NamedTuple):
    """The tensors of a block: rows (r, d), columns (c * K, d), and vectors along either side."""

    rows: Tensor
    columns: Tensor
    row_norms: Tensor | None  # (r,) squared lengths; None on the sphere
    column_norms: Tensor | None  # (c,)
    vectors: tuple[Tensor, ...]

    @classmethod
    def of(
        cls, reduction: Reduction, rows: Tensor, columns: Tensor, vectors: tuple[Tensor, ...]
    ) -> Sides:
        """The sides with their squared lengths, where those matter."""
        if reduction.on_sphere:
            return cls(rows, columns, None, None, vectors)
        return cls(rows, columns, rows.square().sum(1), columns.square().sum(1), vectors)


def reduce_tiles(reduction: Reduction, rows: Tensor, columns: Tensor, *vectors: Tensor) -> Tensor:
    """The reduction's value: () for a sum, (r,) or (c,) for a log-sum-exp. Differentiable in all tensors."""
    value: Tensor = _TileReduction.apply(reduction, rows, columns, *vectors)
    return value


class _TileReduction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reduction: Reduction, rows: Tensor, columns: Tensor, *vectors: Tensor) -> Tensor:
        sides = Sides.of(reduction, rows, columns, vectors)
        result = _sum(reduction, sides) if reduction.kind == "sum" else _logsumexp(reduction, sides)
        ctx.reduction = reduction
        ctx.save_for_backward(rows, columns, result, *vectors)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, result, *vectors = ctx.saved_tensors
        sides = Sides.of(ctx.reduction, rows, columns, tuple(vectors))
        return None, *_gradients(ctx.reduction, sides, result, gradients[0])


def _similarity(reduction: Reduction, sides: Sides, cell: Cell) -> tuple[Tensor, Tensor | None]:
    """The tile's similarities, and the raw ones (r, c * K) where centers are softly assigned."""
    assignment = reduction.assignment
    depth = assignment.centers_per_class if assignment else 1
    raw = sides.rows[cell.top : cell.bottom] @ sides.columns[cell.left * depth : cell.right * depth].T
    return (assignment.assign(raw), raw) if assignment else (raw, None)


def _tile(reduction: Reduction, sides: Sides, cell: Cell, similarity: Tensor) -> Tile:
    def squared_distance() -> Tensor:
        squared = similarity * -2
        if sides.row_norms is None or sides.column_norms is None:
            squared.add_(2)
        else:
            squared.add_(sides.row_norms[cell.top : cell.bottom, None])
            squared.add_(sides.column_norms[None, cell.left : cell.right])
        return squared.clamp_min_(SMALLEST_SQUARED_DISTANCE)

    n = reduction.num_row_vectors
    return Tile(
        similarity,
        squared_distance,
        tuple(vector[cell.top : cell.bottom, None] for vector in sides.vectors[:n]),
        tuple(vector[None, cell.left : cell.right] for vector in sides.vectors[n:]),
    )


def tile_values(reduction: Reduction, sides: Sides, cell: Cell) -> Tensor:
    """The scores of one tile (r, c), whose entries may be overwritten."""
    return reduction.score(_tile(reduction, sides, cell, _similarity(reduction, sides, cell)[0]))


def _sum(reduction: Reduction, sides: Sides) -> Tensor:
    total = sides.rows.new_zeros(())
    for cell in reduction.grid.cells(reduction.where):
        values = tile_values(reduction, sides, cell)
        if cell.mixed:
            reduction.grid.blank(values, cell, reduction.where, 0.0)
        total += values.sum()
    return total


def _logsumexp(reduction: Reduction, sides: Sides) -> Tensor:
    dim, span = (1, "rows") if reduction.over == "columns" else (0, "columns")
    depth = reduction.assignment.centers_per_class if reduction.assignment else 1
    size = len(sides.rows) if span == "rows" else len(sides.columns) // depth
    shift = reduction.constant_shift()
    total = sides.rows.new_zeros(size)
    highest = total.new_full((size,), LOG_OF_NOTHING if shift is None else shift)
    for cell in reduction.grid.cells(reduction.where):
        part = slice(cell.top, cell.bottom) if span == "rows" else slice(cell.left, cell.right)
        values = tile_values(reduction, sides, cell)
        if cell.mixed:
            reduction.grid.blank(values, cell, reduction.where, -torch.inf)
        if shift is None:
            higher = torch.maximum(highest[part], values.amax(dim))
            total[part] *= (highest[part] - higher).exp_()
            highest[part] = higher
            values.sub_(higher.unsqueeze(dim))
        else:
            values.sub_(shift)
        total[part] += values.exp_().sum(dim)
    return reduction.combine(highest, total)


def _gradients(
    reduction: Reduction, sides: Sides, result: Tensor, gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients by rows, columns and each vector."""
    to_rows, to_columns = torch.zeros_like(sides.rows), torch.zeros_like(sides.columns)
    to_vectors = tuple(torch.zeros_like(vector) for vector in sides.vectors)
    if reduction.kind == "logsumexp":
        # exp(score - inf) = 0: an empty sum passes nothing on.
        result = result.masked_fill(result <= LOG_OF_NOTHING / 2, torch.inf)
    assignment = reduction.assignment
    depth = assignment.centers_per_class if assignment else 1
    through_distance = _Norms(sides)
    for cell in reduction.grid.cells(reduction.where):
        similarity, raw = _similarity(reduction, sides, cell)
        by_similarity, by_distance, by_vectors = _pull_back(
            reduction, sides, cell, similarity, result, gradient
        )
        if by_distance is not None:
            through_distance.add(cell, by_distance)
        if assignment is not None and raw is not None:
            by_similarity = assignment.pull_back(raw, similarity, by_similarity)
        band, span = slice(cell.top, cell.bottom), slice(cell.left * depth, cell.right * depth)
        to_rows[band].addmm_(by_similarity, sides.columns[span])
        to_columns[span].addmm_(by_similarity.T, sides.rows[band])
        for n, part in enumerate(by_vectors):
            is_row = n < reduction.num_row_vectors
            to_vectors[n][band if is_row else span] += part.flatten()
    through_distance.finish(to_rows, to_columns)
    return (to_rows, to_columns, *to_vectors)


def _upstream(reduction: Reduction, cell: Cell, values: Tensor, result: Tensor, gradient: Tensor) -> Tensor:
    """Gradient by the scores of a tile; overwrites ``values``."""
    if reduction.kind == "sum":
        upstream = values.copy_(gradient.expand_as(values))
    else:
        by_row = reduction.over == "columns"
        part = slice(cell.top, cell.bottom) if by_row else slice(cell.left, cell.right)
        result, gradient = result[part].unsqueeze(int(by_row)), gradient[part].unsqueeze(int(by_row))
        if cell.mixed:
            # Before the exp: an entry that does not count may exceed the log-sum by any amount.
            reduction.grid.blank(values, cell, reduction.where, -torch.inf)
        return values.sub_(result).exp_().mul_(gradient)
    return reduction.grid.blank(upstream, cell, reduction.where, 0.0) if cell.mixed else upstream


def _pull_back(
    reduction: Reduction, sides: Sides, cell: Cell, similarity: Tensor, result: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Gradients of one tile by similarity, the part of it that came through distances, and by vectors."""
    pull_back_ = getattr(reduction.score, "pull_back_", None)
    if pull_back_ is not None:
        tile = _tile(reduction, sides, cell, similarity)
        by_similarity = pull_back_(
            tile, _upstream(reduction, cell, reduction.score(tile), result, gradient)
        )
        through = reduction.score.through == "distance"  # type: ignore[attr-defined]
        return by_similarity, by_similarity if through else None, ()
    with torch.enable_grad():
        leaf = similarity.detach().requires_grad_()
        plain = _tile(reduction, sides, cell, similarity.detach())
        squared = plain.squared_distance.requires_grad_()
        vectors = tuple(v.detach().requires_grad_() for v in (*plain.rows, *plain.columns))
        n = reduction.num_row_vectors
        values = reduction.score(Tile(leaf, lambda: squared, vectors[:n], vectors[n:]))
        upstream = _upstream(reduction, cell, values.detach().clone(), result, gradient)
        found = torch.autograd.grad(values, (leaf, squared, *vectors), upstream, allow_unused=True)
    # The squared distance is r2 + c2 - 2 s, clamped from below where it has no gradient.
    by_squared = found[1]
    by_distance = None if by_squared is None else -2 * by_squared * (squared > SMALLEST_SQUARED_DISTANCE)
    parts = [part for part in (found[0], by_distance) if part is not None]
    by_similarity = torch.zeros_like(similarity) if not parts else sum(parts[1:], parts[0])
    by_vectors = tuple(
        torch.zeros_like(v) if g is None else g for v, g in zip(vectors, found[2:], strict=True)
    )
    return by_similarity, by_distance, by_vectors


class _Norms:
    """Gradient through the squared lengths in a distance: a row gets -x times the sum of its tile gradients."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._needed = sides.row_norms is not None
        self._by_row = sides.rows.new_zeros(len(sides.rows))
        self._by_column = sides.rows.new_zeros(len(sides.columns))

    def add(self, cell: Cell, by_similarity: Tensor) -> None:
        if self._needed:
            self._by_row[cell.top : cell.bottom] += by_similarity.sum(1)
            self._by_column[cell.left : cell.right] += by_similarity.sum(0)

    def finish(self, to_rows: Tensor, to_columns: Tensor) -> None:
        if self._needed:
            to_rows.addcmul_(self._by_row[:, None], self._sides.rows, value=-1)
            to_columns.addcmul_(self._by_column[:, None], self._sides.columns, value=-1)
