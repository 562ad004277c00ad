"""The backward pass of a tiled reduction: every tile is computed again, and its gradient folded into both sides.

For a log-sum-exp the gradient by a score is ``exp(score - result) * g`` with ``g`` per row or per column. Where the
score brings its own derivative, ``g`` never touches the matrix: it scales one side before, the other side after the
products, so a tile costs its product, one difference, one exp and two products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed.grid import Cell
from dmlscale.distributed.tiles import (
    Reduction,
    Sides,
    apply_reduction,
    distance_tile,
    make_tile,
    similarities,
)
from dmlscale.losses.block import LOG_OF_NOTHING, SMALLEST_SQUARED_DISTANCE, Tile
from dmlscale.losses.scores import NamedScore, named


class TileReduction(torch.autograd.Function):
    """`tiles.reduce_tiles` with its gradient."""

    @staticmethod
    def forward(ctx: Any, reduction: Reduction, rows: Tensor, columns: Tensor, *vectors: Tensor) -> Tensor:
        """See `tiles.reduce_tiles`."""
        result: Tensor = apply_reduction(reduction, Sides.of(reduction, rows, columns, vectors))
        ctx.reduction = reduction
        ctx.save_for_backward(rows, columns, result, *vectors)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by rows, columns and each vector."""
        # A caller's autocast may span the backward pass; tiles are computed again as they were.
        with torch.autocast(gradients[0].device.type, enabled=False):
            return TileReduction._backward(ctx, *gradients)

    @staticmethod
    def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, result, *vectors = ctx.saved_tensors
        reduction: Reduction = ctx.reduction
        sides = Sides.of(reduction, rows, columns, tuple(vectors))
        if reduction.kind == "logsumexp":
            # exp(score - inf) = 0: an empty sum passes nothing on.
            result = result.masked_fill(result <= LOG_OF_NOTHING / 2, torch.inf)
        score = named(reduction.score)
        if score is not None and reduction.kind == "logsumexp":
            return None, *_of_named_logsumexp(reduction, score, sides, result, gradients[0])
        return None, *_of_any(reduction, sides, result, gradients[0])


def _of_named_logsumexp(
    reduction: Reduction, score: NamedScore, sides: Sides, result: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    by_row = reduction.over == "columns"
    factor = gradient if by_row else gradient.repeat_interleave(reduction.depth)
    rows = sides.rows * factor[:, None] if by_row else sides.rows
    columns = sides.columns if by_row else sides.columns * factor[:, None]
    to_rows, to_columns = torch.zeros_like(sides.rows), torch.zeros_like(sides.columns)
    norms = _Norms(sides, factor if by_row else None, None if by_row else factor)
    for cell in reduction.grid.cells(reduction.where):
        through_distance = score.through == "distance"
        similarity, raw = (sides.rows, sides.rows) if through_distance else similarities(reduction, sides, cell)
        tile = distance_tile(sides, cell) if through_distance else make_tile(reduction, sides, cell, similarity)
        part = result[cell.top : cell.bottom, None] if by_row else result[None, cell.left : cell.right]
        # Pulling back through the assignment needs the similarities, which `minus` may overwrite.
        kept = similarity.clone() if reduction.assignment else similarity
        weights = score.minus(tile, part).exp_()
        if cell.mixed:
            reduction.grid.blank(weights, cell, reduction.where, 0.0)
        by_similarity = score.pull_back_(tile, weights)
        if through_distance:
            norms.add(cell, by_similarity)
        if reduction.assignment is not None:
            by_similarity = reduction.assignment.pull_back(raw, kept, by_similarity)
        band, span = slice(cell.top, cell.bottom), slice(cell.left * reduction.depth, cell.right * reduction.depth)
        to_rows[band].addmm_(by_similarity, columns[span])
        to_columns[span].addmm_(by_similarity.T, rows[band])
    if by_row:
        to_rows *= factor[:, None]
    else:
        to_columns *= factor[:, None]
    norms.finish(to_rows, to_columns)
    return to_rows, to_columns


def _of_any(reduction: Reduction, sides: Sides, result: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    """Autograd inside each tile; also by the extra vectors."""
    to_rows, to_columns = torch.zeros_like(sides.rows), torch.zeros_like(sides.columns)
    to_vectors = tuple(torch.zeros_like(vector) for vector in sides.vectors)
    norms = _Norms(sides)
    for cell in reduction.grid.cells(reduction.where):
        similarity, raw = similarities(reduction, sides, cell)
        by_similarity, by_distance, by_vectors = _of_tile(reduction, sides, cell, similarity, result, gradient)
        if by_distance is not None:
            norms.add(cell, by_distance)
        if reduction.assignment is not None:
            by_similarity = reduction.assignment.pull_back(raw, similarity, by_similarity)
        band, span = slice(cell.top, cell.bottom), slice(cell.left * reduction.depth, cell.right * reduction.depth)
        to_rows[band].addmm_(by_similarity, sides.columns[span])
        to_columns[span].addmm_(by_similarity.T, sides.rows[band])
        for n, part in enumerate(by_vectors):
            is_row = n < reduction.num_row_vectors
            to_vectors[n][band if is_row else slice(cell.left, cell.right)] += part.flatten()
    norms.finish(to_rows, to_columns)
    return (to_rows, to_columns, *to_vectors)


def _of_tile(
    reduction: Reduction, sides: Sides, cell: Cell, similarity: Tensor, result: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Gradients of one tile by similarity, the part of it that came through distances, and by vectors."""
    with torch.enable_grad():
        leaf = similarity.detach().requires_grad_()
        plain = make_tile(reduction, sides, cell, similarity.detach())
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
    by_similarity = sum(parts[1:], parts[0]) if parts else torch.zeros_like(similarity)
    by_vectors = tuple(torch.zeros_like(v) if g is None else g for v, g in zip(vectors, found[2:], strict=True))
    return by_similarity, by_distance, by_vectors


def _upstream(reduction: Reduction, cell: Cell, values: Tensor, result: Tensor, gradient: Tensor) -> Tensor:
    """Gradient by the scores of a tile; overwrites ``values``."""
    if reduction.kind == "sum":
        upstream = values.copy_(gradient.expand_as(values))
    else:
        by_row = reduction.over == "columns"
        part = slice(cell.top, cell.bottom) if by_row else slice(cell.left, cell.right)
        result, gradient = result[part].unsqueeze(int(by_row)), gradient[part].unsqueeze(int(by_row))
        upstream = values.sub_(result).exp_().mul_(gradient)
    return reduction.grid.blank(upstream, cell, reduction.where, 0.0) if cell.mixed else upstream


class _Norms:
    """Gradient through the squared lengths in a distance: a row gets -x times the sum of its tile gradients.

    Args:
        sides: of the block.
        row_factor: (r,) what the gradients of a row are still to be multiplied with.
        column_factor: (c,) of a column.
    """

    def __init__(self, sides: Sides, row_factor: Tensor | None = None, column_factor: Tensor | None = None) -> None:
        self._sides, self._row_factor, self._column_factor = sides, row_factor, column_factor
        self._needed = sides.row_norms is not None
        self._by_row = sides.rows.new_zeros(len(sides.rows))
        self._by_column = sides.rows.new_zeros(len(sides.columns))

    def add(self, cell: Cell, by_similarity: Tensor) -> None:
        if not self._needed:
            return
        band, span = slice(cell.top, cell.bottom), slice(cell.left, cell.right)
        along_row, along_column = self._column_factor, self._row_factor
        self._by_row[band] += by_similarity.sum(1) if along_row is None else by_similarity @ along_row[span]
        self._by_column[span] += by_similarity.sum(0) if along_column is None else along_column[band] @ by_similarity

    def finish(self, to_rows: Tensor, to_columns: Tensor) -> None:
        if not self._needed:
            return
        by_row = self._by_row if self._row_factor is None else self._by_row * self._row_factor
        by_column = self._by_column if self._column_factor is None else self._by_column * self._column_factor
        to_rows.addcmul_(by_row[:, None], self._sides.rows, value=-1)
        to_columns.addcmul_(by_column[:, None], self._sides.columns, value=-1)
