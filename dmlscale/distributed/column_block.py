"""What blocks share whose columns are split over ranks: rows are the global batch, the same on every rank.

Rows and columns are sorted by label (see grid.py), so vectors a block returns are in its own order; a loss only ever
combines them with each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.assignment import SoftAssignment
from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.best import best_entries, best_over_ranks
from dmlscale.distributed.columns import Columns
from dmlscale.distributed.grid import Grid
from dmlscale.distributed.reductions import complete_log, mean
from dmlscale.distributed.refusing import RefusingBlock
from dmlscale.distributed.tiles import Kind, Reduction, reduce_tiles, reduce_with_maximum
from dmlscale.distributed.world import World
from dmlscale.losses.block import Axis, BlockError, Score, Where


class ColumnBlock(RefusingBlock):
    """Samples x columns of which a rank owns some.

    Communication: one all-gather of the sizes, one of labels and ids, one of embeddings (backward: reduce-scatter,
    sum); per reduction over columns one all-reduce of (B,), or three for an extreme; over rows none; one scalar for
    each sum or mean.
    """

    _columns: Columns
    _grid: Grid
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

    def _reduction(self, score: Score, kind: Kind, over: Axis, where: Where, num_row_vectors: int = 0) -> Reduction:
        return Reduction(
            grid=self._grid,
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
        """See `SimilarityBlock.logsumexp`."""
        return reduce_tiles(
            self._reduction(score, "logsumexp", over, where, len(rows)), self._rows, self._columns, *rows
        )

    def logsumexp_and_maximum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.logsumexp_and_maximum`."""
        reduction = self._reduction(score, "logsumexp", "columns", where, len(rows))
        value, highest = reduce_with_maximum(reduction, self._rows, self._columns, *rows)
        return value, collectives.max_over_ranks(highest, self._world)

    def sum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = (), columns: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """See `SimilarityBlock.sum`."""
        reduction = self._reduction(score, "sum", "columns", where, len(rows))
        local = reduce_tiles(reduction, self._rows, self._columns, *self._for_my_columns(rows), *columns)
        return collectives.sum_over_ranks(local, self._world)

    def row_sums(self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """See `SimilarityBlock.row_sums`."""
        reduction = self._reduction(score, "row_sum", "columns", where, len(rows))
        local = reduce_tiles(reduction, self._rows, self._columns, *self._for_my_columns(rows))
        return collectives.sum_over_ranks(local, self._world)

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
        reduction = self._reduction(score, "sum", "columns", where)
        values, found = best_entries(reduction, self._rows, self._columns, largest=largest)
        return best_over_ranks(values, found, self._world, largest=largest)

    def total(self, vector: Tensor, *, of: Axis) -> Tensor:
        """See `SimilarityBlock.total`."""
        return vector.sum() if of == "rows" else collectives.sum_over_ranks(vector.sum(), self._world)

    def mean(self, vector: Tensor, *, of: Axis, where: Tensor | None = None) -> Tensor:
        """See `SimilarityBlock.mean`."""
        return mean(vector, where, self._world if of == "columns" else World())
