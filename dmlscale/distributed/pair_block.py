"""Samples x samples: a rank owns rows.

Rows and columns are sorted by label (see grid.py), so vectors a block returns are in its own order; a loss only ever
combines them with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Literal

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.best import best_entries
from dmlscale.distributed.columns import Columns
from dmlscale.distributed.entries import squared_distances
from dmlscale.distributed.grid import Grid
from dmlscale.distributed.hinges import HingeSums, hinge_sums
from dmlscale.distributed.mined import Mining, mine, positive_columns
from dmlscale.distributed.reductions import complete_log, counts, mean
from dmlscale.distributed.refusing import RefusingBlock
from dmlscale.distributed.tiles import Kind, Reduction, reduce_tiles, reduce_with_maximum
from dmlscale.distributed.world import World
from dmlscale.losses.block import Axis, BlockError, RowTile, Score, Selection, Where
from dmlscale.losses.draws import Chance


class PairBlock(RefusingBlock):
    """Samples x samples. A rank owns the rows of its own samples; columns are the global batch.

    Communication: one all-gather of the sizes, one of labels and ids, one of embeddings (backward: reduce-scatter,
    sum), one of a (b,) vector for each `to_columns`, one of (b, 2) for the backward pass of each symmetric log-sum-exp,
    one all-reduce of a scalar or two for each global sum or mean.

    Args:
        batch: this rank's embeddings, divided by their length if ``on_sphere``, labels and identities.
        world: the ranks; they may hold different numbers of samples, also none.
        on_sphere: whether the rows have length one.
        chance: random numbers of miners.
    """

    kind = "a pair block"

    def __init__(self, batch: LocalBatch, world: World, *, on_sphere: bool, chance: Chance | None = None) -> None:
        self._world, self._on_sphere, self._chance = world, on_sphere, chance or Chance()
        order = batch.order()
        self._rows, row_labels, self._row_ids = (part[order] for part in batch)
        self._sizes = collectives.gather_sizes(len(row_labels), world, row_labels.device)
        everyone = collectives.gather_rows(self._rows, self._sizes, world)
        integers = collectives.gather_rows(torch.stack([row_labels, self._row_ids], 1), self._sizes, world)
        all_labels, all_ids = integers.unbind(1)
        self._column_order = LocalBatch(everyone, all_labels, all_ids).order()
        self._everyone = everyone[self._column_order]
        self._columns = Columns(self._everyone, dtype=everyone.dtype, unit=False)
        self._column_ids = all_ids[self._column_order]
        self.num_columns = len(all_labels)
        self.probe = everyone.detach().sum() * 0 + self._columns.handle
        position = torch.empty_like(self._column_order)
        position[self._column_order] = torch.arange(len(all_labels), device=row_labels.device)
        start = sum(self._sizes[: world.rank])
        self._grid = Grid.of(row_labels, all_labels[self._column_order], position[start : start + len(row_labels)])

    def _reduction(self, score: Score, kind: Kind, where: Where, num_row_vectors: int = 0) -> Reduction:
        return Reduction(
            grid=self._grid,
            score=score,
            kind=kind,
            over="columns",
            where=where,
            on_sphere=self._on_sphere,
            assignment=None,
            combine=complete_log,
            num_row_vectors=num_row_vectors,
            mirror=None if self._grid.own_column is None else self.to_columns,
        )

    def logsumexp(self, score: Score, *, over: Axis, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """See `SimilarityBlock.logsumexp`; over columns only (the matrix is symmetric: use `to_columns`)."""
        if over != "columns":
            raise BlockError("a pair block reduces over columns; make the result visible with to_columns()")
        return reduce_tiles(self._reduction(score, "logsumexp", where, len(rows)), self._rows, self._columns, *rows)

    def logsumexp_and_maximum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.logsumexp_and_maximum`."""
        reduction = self._reduction(score, "logsumexp", where, len(rows))
        value, highest = reduce_with_maximum(reduction, self._rows, self._columns, *rows)
        return value, highest

    def sum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = (), columns: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """See `SimilarityBlock.sum`."""
        reduction = self._reduction(score, "sum", where, len(rows))
        local = reduce_tiles(reduction, self._rows, self._columns, *rows, *columns)
        return collectives.sum_over_ranks(local, self._world)

    def row_sums(self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """See `SimilarityBlock.row_sums`. Rows are complete on their rank: no communication."""
        return reduce_tiles(self._reduction(score, "row_sum", where, len(rows)), self._rows, self._columns, *rows)

    def hinge_sums(
        self, thresholds: Tensor, *, squared: bool, power: Literal[1, 2] = 1, above: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.hinge_sums`. Rows are complete on their rank: no communication."""
        setting = HingeSums(self._grid, self._on_sphere, squared, power)
        return hinge_sums(setting, self._rows, self._columns, thresholds, above)

    def maximum(self, score: Score, *, where: Where) -> Tensor:
        """See `SimilarityBlock.maximum`. Rows are complete on their rank: no communication."""
        return best_entries(self._reduction(score, "sum", where), self._rows, self._columns, largest=True)[0]

    def minimum(self, score: Score, *, where: Where) -> Tensor:
        """See `SimilarityBlock.minimum`. Rows are complete on their rank: no communication."""
        return best_entries(self._reduction(score, "sum", where), self._rows, self._columns, largest=False)[0]

    def count(self, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.count`; from labels alone."""
        labels = self._grid.row_labels if over == "columns" else self._grid.column_labels
        same = counts(labels, self._grid.column_labels)
        itself = 0 if self._grid.own_column is None else 1
        return (same - itself if where == "positive" else self.num_columns - same).to(self._rows.dtype)

    def mined(self, select: Callable[[RowTile], Selection], value: Callable[..., Tensor]) -> Tensor:
        """See `SimilarityBlock.mined`. Rows are complete on their rank: no communication."""
        mining = Mining(self._grid, self._on_sphere, select, value, self._chance, self._row_ids, self._column_ids)
        return mine(mining, self._rows, self._columns)

    def positive_distances(self) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.positive_distances`."""
        if self._grid.own_column is None:
            return super().positive_distances()
        columns, valid = positive_columns(self._grid, slice(0, len(self._rows)))
        return squared_distances(self._rows, self._columns, columns), valid

    def to_columns(self, vector: Tensor) -> Tensor:
        """See `SimilarityBlock.to_columns`."""
        if self._grid.own_column is None:
            return super().to_columns(vector)
        return collectives.gather_rows(vector, self._sizes, self._world)[self._column_order]

    def total(self, vector: Tensor, *, of: Axis) -> Tensor:
        """See `SimilarityBlock.total`."""
        return vector.sum() if of == "columns" else collectives.sum_over_ranks(vector.sum(), self._world)

    def mean(self, vector: Tensor, *, of: Axis, where: Tensor | None = None) -> Tensor:
        """See `SimilarityBlock.mean`."""
        return mean(vector, where, self._world if of == "rows" else World())

    def place_in_class(self) -> Tensor:
        """See `SimilarityBlock.place_in_class`; from labels and identities alone."""
        if self._grid.own_column is None:
            return super().place_in_class()
        return self._grid.own_column - self._grid.class_ranges[0]

    def one_pair_per_class(self) -> PairBlock:
        """See `SimilarityBlock.one_pair_per_class`. The same labels on every rank: no communication."""
        labels = self._grid.column_labels
        rows = (self.place_in_class() == 0) & (self.count(over="columns", where="positive") > 0)
        columns = torch.arange(len(labels), device=labels.device) - torch.searchsorted(labels, labels) == 1
        view = copy(self)
        view._rows, view._row_ids, view._column_ids = self._rows[rows], self._row_ids[rows], self._column_ids[columns]
        view._columns = Columns(self._everyone[columns], dtype=self._rows.dtype, unit=False)
        view._grid = Grid.of(self._grid.row_labels[rows], labels[columns], one_positive=True)
        view.num_columns = len(view._columns)
        return view

    def squared_lengths(self) -> Tensor:
        """See `SimilarityBlock.squared_lengths`."""
        return self._rows.square().sum(1)

    def everyone(self) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.everyone`. Every rank holds all columns already: no communication."""
        return self._columns.raw, self._grid.column_labels
