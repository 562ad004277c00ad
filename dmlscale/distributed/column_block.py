"""What blocks share whose columns are split over ranks: rows are the global batch, the same on every rank.

Rows and columns are sorted by label (see grid.py), so vectors a block returns are in its own order; a loss only ever
combines them with each other.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.assignment import SoftAssignment
from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.best import best_entries, best_over_ranks, better_of
from dmlscale.distributed.columns import Columns
from dmlscale.distributed.grid import Grid
from dmlscale.distributed.reductions import complete_log, mean
from dmlscale.distributed.refusing import RefusingBlock
from dmlscale.distributed.tiles import Kind, Reduction, reduce_tiles, reduce_with_maximum
from dmlscale.distributed.world import World
from dmlscale.losses.block import Axis, BlockError, Score, Where


class Part(NamedTuple):
    """Columns of one kind, e.g. the classes of the batch, or the past samples of a memory.

    Args:
        columns: this rank's.
        grid: labels of rows and of these columns.
        log_weight: log of how many columns each of them stands for in a log-sum.
    """

    columns: Columns
    grid: Grid
    log_weight: float = 0.0


class ColumnBlock(RefusingBlock):
    """Samples x columns of which a rank owns some.

    Communication: one all-gather of the sizes, one of labels and ids, one of embeddings (backward: reduce-scatter,
    sum); per log-sum over columns two all-reduces of (B,) for each kind of columns, per sum one, per extreme three;
    over rows none; one scalar for each sum or mean.
    """

    _parts: tuple[Part, ...]
    _assignment: SoftAssignment | None = None

    def __init__(self, batch: LocalBatch, world: World, *, on_sphere: bool) -> None:
        self._world, self._on_sphere = world, on_sphere
        sizes = collectives.gather_sizes(len(batch.labels), world, batch.labels.device)
        integers = collectives.gather_rows(torch.stack([batch.labels, batch.ids], 1), sizes, world)
        rows = collectives.gather_rows(batch.embeddings, sizes, world)
        whole = LocalBatch(rows, integers[:, 0], integers[:, 1])
        order = whole.order()
        self._rows, self._row_labels, self._row_ids = (part[order] for part in whole)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        first = sum(sizes[: world.rank])
        self._places = place[first : first + len(batch.labels)]  # of this rank's samples among the rows
        self.probe = self._rows.detach().sum() * 0

    def _reduction(
        self, grid: Grid, score: Score, kind: Kind, over: Axis, where: Where, num_row_vectors: int = 0
    ) -> Reduction:
        return Reduction(
            grid=grid,
            score=score,
            kind=kind,
            over=over,
            where=where,
            on_sphere=self._on_sphere,
            assignment=self._assignment,
            combine=self._combine if over == "columns" else complete_log,
            num_row_vectors=num_row_vectors,
        )

    def _combine(self, shift: Tensor, total: Tensor) -> Tensor:
        """Rows are split over ranks: bring the partial sums to a common shift and add them."""
        highest = collectives.max_over_ranks(shift, self._world)
        total = collectives.sum_over_ranks(total * (shift - highest).exp(), self._world)
        return complete_log(highest, total)

    def logsumexp(self, score: Score, *, over: Axis, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """See `SimilarityBlock.logsumexp`; over rows only where all columns are of one kind."""
        values = []
        for part in self._parts:
            reduction = self._reduction(part.grid, score, "logsumexp", over, where, len(rows))
            values.append(reduce_tiles(reduction, self._rows, part.columns, *rows) + part.log_weight)
        return reduce(torch.logaddexp, values)

    def logsumexp_and_maximum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.logsumexp_and_maximum`."""
        values, tops = [], []
        for part in self._parts:
            reduction = self._reduction(part.grid, score, "logsumexp", "columns", where, len(rows))
            value, highest = reduce_with_maximum(reduction, self._rows, part.columns, *rows)
            values.append(value + part.log_weight)
            tops.append(highest)
        return reduce(torch.logaddexp, values), collectives.max_over_ranks(reduce(torch.maximum, tops), self._world)

    def sum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = (), columns: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """See `SimilarityBlock.sum`; per-column vectors only where all columns are of one kind."""
        return self._summed("sum", score, where, rows, columns)

    def row_sums(self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """See `SimilarityBlock.row_sums`."""
        return self._summed("row_sum", score, where, rows, ())

    def _summed(
        self, kind: Kind, score: Score, where: Where, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]
    ) -> Tensor:
        vectors = (*self._for_my_columns(rows), *columns)
        local = [
            reduce_tiles(
                self._reduction(part.grid, score, kind, "columns", where, len(rows)), self._rows, part.columns, *vectors
            )
            for part in self._parts
        ]
        return collectives.sum_over_ranks(reduce(torch.add, local), self._world)

    def _for_my_columns(self, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(collectives.used_by_parts(vector, self._world) for vector in rows)

    def maximum(self, score: Score, *, where: Where) -> Tensor:
        """See `SimilarityBlock.maximum`. Three all-reduces of (B,): the best, its owner, its value."""
        return self._best(score, where, largest=True)

    def minimum(self, score: Score, *, where: Where) -> Tensor:
        """See `SimilarityBlock.minimum`. Three all-reduces of (B,): the best, its owner, its value."""
        return self._best(score, where, largest=False)

    def _best(self, score: Score, where: Where, *, largest: bool) -> Tensor:
        if self._assignment is not None:
            raise BlockError("maximum() and minimum() of a class block need one center per class")
        found: list[tuple[Tensor, Tensor]] = []
        for part in self._parts:
            reduction = self._reduction(part.grid, score, "sum", "columns", where)
            found.append(best_entries(reduction, self._rows, part.columns, largest=largest))
        values, has_any = reduce(lambda a, b: better_of(a, b, largest=largest), found)
        return best_over_ranks(values, has_any, self._world, largest=largest)

    def total(self, vector: Tensor, *, of: Axis) -> Tensor:
        """See `SimilarityBlock.total`."""
        return vector.sum() if of == "rows" else collectives.sum_over_ranks(vector.sum(), self._world)

    def mean(self, vector: Tensor, *, of: Axis, where: Tensor | None = None) -> Tensor:
        """See `SimilarityBlock.mean`."""
        return mean(vector, where, self._world if of == "columns" else World())
