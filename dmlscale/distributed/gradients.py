"""The backward pass of a tiled reduction: every tile is computed again, and its gradient folded into both sides.

For a log-sum-exp the gradient by a score is ``exp(score - result) * g`` with ``g`` per row or per column. Where the
score brings its own derivative, ``g`` goes into the exponent, so a tile costs its product, one difference, one exp and
two products; one product where rows and columns are the same samples (mirrored.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed.columns import Columns
from dmlscale.distributed.grid import Cell
from dmlscale.distributed.mirrored import mirrored_gradient
from dmlscale.distributed.norms import Norms
from dmlscale.distributed.sides import Sides
from dmlscale.distributed.tiles import Reduction, apply_reduction, distance_tile, exp_flushed_, make_tile, similarities
from dmlscale.losses.block import LOG_OF_NOTHING, SMALLEST_SQUARED_DISTANCE, Tile
from dmlscale.losses.scores import NamedScore, named


class TileReduction(torch.autograd.Function):
    """`tiles.reduce_tiles` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, reduction: Reduction, columns: Columns, rows: Tensor, handle: Tensor, *vectors: Tensor
    ) -> tuple[Tensor, ...]:
        """See `tiles.reduce_tiles`."""
        values = apply_reduction(reduction, Sides(rows, columns, vectors, on_sphere=reduction.on_sphere))
        ctx.setting = reduction, columns
        ctx.save_for_backward(rows, values[0], *vectors)
        ctx.mark_non_differentiable(*values[1:])
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by rows and each vector; that by columns goes to their buffer."""
        rows, result, *vectors = ctx.saved_tensors
        reduction, columns = ctx.setting
        # A caller's autocast may span the backward pass; tiles are computed again as they were.
        with torch.autocast(gradients[0].device.type, enabled=False):
            sides = Sides(rows, columns, tuple(vectors), on_sphere=reduction.on_sphere)
            to_rows, to_vectors = _gradient(reduction, sides, result, gradients[0])
        return None, None, to_rows, rows.new_zeros(()), *to_vectors


def _gradient(
    reduction: Reduction, sides: Sides, result: Tensor, gradient: Tensor
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    if reduction.is_log:
        # exp(score - inf) = 0: an empty sum passes nothing on.
        result = result.masked_fill(result <= LOG_OF_NOTHING / 2, torch.inf)
    score = named(reduction.score)
    if score is None or not reduction.is_log:
        return _of_any(reduction, sides, result, gradient)
    nothing = (None,) * len(sides.vectors)
    if score.symmetric and reduction.mirror is not None:
        return mirrored_gradient(reduction, score, sides, result, gradient, reduction.mirror), nothing
    return _of_named_logsumexp(reduction, score, sides, result, gradient), nothing


def _of_named_logsumexp(
    reduction: Reduction, score: NamedScore, sides: Sides, result: Tensor, gradient: Tensor
) -> Tensor:
    by_row = reduction.over == "columns"
    # exp(score - result) * g = exp(score - (result - log g)); nothing where g is zero.
    offset = result - gradient.abs().log()
    has_negative = bool((gradient < 0).any())
    to_rows, to_columns = torch.zeros_like(sides.rows), sides.columns.gradient()
    norms = Norms(sides)
    for cell in reduction.grid.cells(reduction.where):
        through_distance = score.through == "distance"
        similarity, raw = (sides.rows, sides.rows) if through_distance else similarities(reduction, sides, cell)
        tile = distance_tile(sides, cell) if through_distance else make_tile(reduction, sides, cell, similarity)
        part = slice(cell.top, cell.bottom) if by_row else slice(cell.left, cell.right)
        # Pulling back through the assignment needs the similarities, which `minus` may overwrite.
        kept = similarity.clone() if reduction.assignment else similarity
        weights = score.minus(tile, offset[part].unsqueeze(int(by_row)))
        weights = exp_flushed_(weights) if reduction.shift is None else weights.exp_()
        if cell.mixed:
            reduction.grid.blank(weights, cell, reduction.where, 0.0)
        if has_negative:
            weights.mul_(gradient[part].sign().unsqueeze(int(by_row)))
        by_similarity = score.pull_back_(tile, weights)
        if through_distance:
            norms.add(cell, by_similarity)
        if reduction.assignment is not None:
            by_similarity = reduction.assignment.pull_back(raw, kept, by_similarity)
        _fold(reduction, sides, cell, by_similarity, to_rows, to_columns)
    norms.finish(to_rows, to_columns)
    return to_rows


def _fold(
    reduction: Reduction, sides: Sides, cell: Cell, by_similarity: Tensor, to_rows: Tensor, to_columns: Tensor | None
) -> None:
    """Adds a tile's gradient to both sides."""
    band, depth = slice(cell.top, cell.bottom), reduction.depth
    left, right = cell.left * depth, cell.right * depth
    to_rows[band].addmm_(by_similarity, sides.columns.strip(left, right, depth))
    sides.columns.add_gradient(to_columns, left, right, by_similarity, sides.rows[band], depth)


def _of_any(reduction: Reduction, sides: Sides, result: Tensor, gradient: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Autograd inside each tile; also by the extra vectors."""
    to_rows, to_columns = torch.zeros_like(sides.rows), sides.columns.gradient()
    to_vectors = tuple(torch.zeros_like(vector) for vector in sides.vectors)
    norms = Norms(sides)
    for cell in reduction.grid.cells(reduction.where):
        similarity, raw = similarities(reduction, sides, cell)
        by_similarity, by_distance, by_vectors = _of_tile(reduction, sides, cell, similarity, result, gradient)
        if by_distance is not None:
            norms.add(cell, by_distance)
        if reduction.assignment is not None:
            by_similarity = reduction.assignment.pull_back(raw, similarity, by_similarity)
        _fold(reduction, sides, cell, by_similarity, to_rows, to_columns)
        for n, part in enumerate(by_vectors):
            is_row = n < reduction.num_row_vectors
            span = slice(cell.top, cell.bottom) if is_row else slice(cell.left, cell.right)
            to_vectors[n][span] += part.flatten()
    norms.finish(to_rows, to_columns)
    return to_rows, to_vectors


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
    band = slice(cell.top, cell.bottom)
    if reduction.kind == "sum":
        upstream = values.copy_(gradient.expand_as(values))
    elif reduction.kind == "row_sum":
        upstream = values.copy_(gradient[band, None].expand_as(values))
    else:
        by_row = reduction.over == "columns"
        part = band if by_row else slice(cell.left, cell.right)
        result, gradient = result[part].unsqueeze(int(by_row)), gradient[part].unsqueeze(int(by_row))
        upstream = values.sub_(result).exp_().mul_(gradient)
    return reduction.grid.blank(upstream, cell, reduction.where, 0.0) if cell.mixed else upstream
