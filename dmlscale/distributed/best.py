"""The largest or smallest score of each row: found tile by tile, differentiable at the attaining entry only."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlscale.distributed.tiles import Reduction, Sides, tile_values
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE, Tile


def best_entries(reduction: Reduction, rows: Tensor, columns: Tensor, *, largest: bool) -> Tensor:
    """Extreme score of each row over its entries -> (r,); 0, without gradient, for a row that has none.

    Ties go to the first column in the block's order.
    """
    with torch.no_grad():
        found, column = _search(reduction, rows, columns, largest)
    chosen = columns[column]

    def squared_distance() -> Tensor:
        return (rows - chosen).square().sum(1, keepdim=True).clamp_min(SMALLEST_SQUARED_DISTANCE)

    similarity = (rows * chosen).sum(1, keepdim=True)
    values = reduction.score(Tile(similarity, squared_distance))[:, 0]
    return torch.where(found, values, 0.0)


def _search(reduction: Reduction, rows: Tensor, columns: Tensor, largest: bool) -> tuple[Tensor, Tensor]:
    """Whether each row has an entry, and the column of its best: (r,) both."""
    sides = Sides.of(reduction, rows, columns, ())
    worst = -torch.inf if largest else torch.inf
    best = rows.new_full((len(rows),), worst)
    column = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for cell in reduction.grid.cells(reduction.where):
        values = tile_values(reduction, sides, cell)
        if cell.mixed:
            reduction.grid.blank(values, cell, reduction.where, worst)
        band = slice(cell.top, cell.bottom)
        value, position = values.max(1) if largest else values.min(1)
        better = value > best[band] if largest else value < best[band]
        best[band] = torch.where(better, value, best[band])
        column[band] = torch.where(better, position + cell.left, column[band])
    return best != worst, column
