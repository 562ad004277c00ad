"""The backward pass of a log-sum-exp over pairs of the same samples, with one product per tile instead of two.

A sample is a row of its own rank and a column of all ranks. With a symmetric score, entry (j, i) of another rank holds
the same score as entry (i, j) here, and differs in its weight only: ``exp(score - result_j) * g_j``. So one gather of
``result`` and ``g`` over the ranks, 2 B numbers, replaces the product that makes the gradient by columns, and the
reduce-scatter of B x d that would bring it home.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmlscale.distributed.norms import Norms
from dmlscale.distributed.sides import Scratch, Sides
from dmlscale.distributed.tiles import SAFE_HALF_RANGE, Reduction, distance_tile, exp_flushed_, make_tile
from dmlscale.losses.scores import NamedScore


def mirrored_gradient(
    reduction: Reduction,
    score: NamedScore,
    sides: Sides,
    result: Tensor,
    gradient: Tensor,
    mirror: Callable[[Tensor], Tensor],
) -> Tensor:
    """Gradient by the rows, for both roles of a sample -> (r, d); columns get none.

    Args:
        reduction: a log-sum-exp over columns.
        score: symmetric.
        sides: of the block.
        result: (r,) of the forward pass; infinite where the sum is empty.
        gradient: (r,) by the result.
        mirror: a per-row vector (r,) -> per column (c,).
    """
    column_result, column_gradient = mirror(torch.stack([result, gradient], 1)).unbind(1)
    shift = reduction.shift if reduction.shift is not None else score.upper_bound
    weigh: _SplitWeights | _SharedWeights = _SplitWeights((result, gradient), (column_result, column_gradient))
    if shift is not None and bool((column_result > shift - SAFE_HALF_RANGE - 1).all()):
        weigh = _SharedWeights(sides, (result, gradient), (column_result, column_gradient), shift)
    to_rows, norms = torch.zeros_like(sides.rows), Norms(sides)
    through_distance = score.through == "distance"
    for cell in reduction.grid.cells(reduction.where):
        if through_distance:
            tile = distance_tile(sides, cell)
        else:
            tile = make_tile(reduction, sides, cell, sides.similarity(cell))
        band, span = slice(cell.top, cell.bottom), slice(cell.left, cell.right)
        weights = weigh(score.minus(tile, weigh.offset(band)), band, span)
        if cell.mixed:
            reduction.grid.blank(weights, cell, reduction.where, 0.0)
        by_similarity = score.pull_back_(tile, weights)
        if through_distance:
            norms.add(cell, by_similarity)
        to_rows[band].addmm_(by_similarity, sides.columns.strip(cell.left, cell.right))
    norms.finish(to_rows, None)
    return to_rows


_Pair = tuple[Tensor, Tensor]


class _SharedWeights:
    """``exp(score - shift) * (a_i + a_j)`` with ``a = g exp(shift - result)``: one exp, where a is in range."""

    def __init__(self, sides: Sides, row: _Pair, column: _Pair, shift: float) -> None:
        self._shift = shift
        self._row = row[1] * (shift - row[0]).exp()
        self._column = column[1] * (shift - column[0]).exp()
        self._scratch = Scratch(sides.rows)

    def offset(self, band: slice) -> Tensor | float:
        return self._shift

    def __call__(self, score: Tensor, band: slice, span: slice) -> Tensor:
        row, column = self._row[band, None], self._column[None, span]
        both = torch.add(row, column, out=self._scratch.take(len(row), column.shape[1]))
        return score.exp_().mul_(both)


class _SplitWeights:
    """``exp(score - result_i) * g_i + exp(score - result_j) * g_j``: for scores that no constant brings into range."""

    def __init__(self, row: _Pair, column: _Pair) -> None:
        self._row, self._column = row, column

    def offset(self, band: slice) -> Tensor | float:
        return 0.0

    def __call__(self, score: Tensor, band: slice, span: slice) -> Tensor:
        by_column = exp_flushed_(score - self._column[0][None, span]).mul_(self._column[1][None, span])
        return exp_flushed_(score.sub_(self._row[0][band, None])).mul_(self._row[1][band, None]).add_(by_column)
