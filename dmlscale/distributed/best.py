"""The largest or smallest score of each row: found tile by tile, differentiable at the attaining entry only."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlscale.distributed.collectives import max_over_ranks, min_over_ranks, sum_over_ranks
from dmlscale.distributed.columns import Columns
from dmlscale.distributed.sides import Sides
from dmlscale.distributed.tiles import Reduction, tile_values
from dmlscale.distributed.world import World
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE, Tile


def best_entries(reduction: Reduction, rows: Tensor, columns: Columns, *, largest: bool) -> tuple[Tensor, Tensor]:
    """Extreme score of each row over its entries, and whether it has any -> (r,) each.

    A row without entries gets 0, without gradient. Ties go to the first column in the block's order.
    """
    with torch.no_grad():
        found, column = _search(reduction, rows, columns, largest)
    if len(columns) == 0:
        return (rows * 0).sum(1) + columns.handle, found
    chosen = columns.take(column)

    def squared_distance() -> Tensor:
        return (rows - chosen).square().sum(1, keepdim=True).clamp_min(SMALLEST_SQUARED_DISTANCE)

    similarity = (rows * chosen).sum(1, keepdim=True)
    values = reduction.score(Tile(similarity, squared_distance))[:, 0]
    return torch.where(found, values, 0.0), found


def better_of(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], *, largest: bool) -> tuple[Tensor, Tensor]:
    """Of two results of `best_entries` for the same rows the better one of each row; the first of equals."""
    beaten = b[0] > a[0] if largest else b[0] < a[0]
    return torch.where(b[1] & (beaten | ~a[1]), b[0], a[0]), a[1] | b[1]


def best_over_ranks(values: Tensor, found: Tensor, world: World, *, largest: bool) -> Tensor:
    """The best of all ranks' values -> (r,); the gradient goes to the rank that holds it, the first of equals.

    Args:
        values: (r,) best of this rank's columns.
        found: (r,) whether this rank has any.
        world: the ranks.
        largest: which is best.
    """
    if world.num_ranks == 1:
        return values
    height = torch.where(found, values.detach() if largest else -values.detach(), -torch.inf)
    highest = max_over_ranks(height, world)
    nobody = torch.full_like(height, world.num_ranks)
    owner = min_over_ranks(torch.where(found & (height == highest), float(world.rank), nobody), world)
    return sum_over_ranks(torch.where(owner == world.rank, values, 0.0), world)


def _search(reduction: Reduction, rows: Tensor, columns: Columns, largest: bool) -> tuple[Tensor, Tensor]:
    """Whether each row has an entry, and the column of its best: (r,) both."""
    sides = Sides(rows, columns, on_sphere=reduction.on_sphere)
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
