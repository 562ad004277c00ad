"""Samples x samples: a rank owns rows.

Rows and columns are sorted by label (see grid.py), so vectors a block returns are in its own order; a loss only ever
combines them with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.best import best_entries
from dmlscale.distributed.grid import Grid
from dmlscale.distributed.mined import mine
from dmlscale.distributed.reductions import complete_log, counts, mean
from dmlscale.distributed.tiles import Reduction, reduce_tiles
from dmlscale.distributed.world import World
from dmlscale.losses.block import Axis, RowTile, Score, Selection, Where


class PairBlock:
    """Samples x samples. A rank owns the rows of its own samples; columns are the global batch.

    Communication: one all-gather of the sizes, one of labels, one of embeddings (backward: reduce-scatter, sum),
    one of a (b,) vector for each `to_columns`, one all-reduce of a scalar or two for each global sum or mean.

    Args:
        embeddings: (b, d) this rank's embeddings, divided by their length if ``on_sphere``.
        labels: (b,) int64.
        world: the ranks; they may hold different numbers of samples, also none.
        on_sphere: whether the rows have length one.
    """

    def __init__(self, embeddings: Tensor, labels: Tensor, world: World, *, on_sphere: bool) -> None:
        self._world, self._on_sphere = world, on_sphere
        order = labels.argsort(stable=True)
        self._rows, row_labels = embeddings[order], labels[order]
        self._sizes = collectives.gather_sizes(len(labels), world, labels.device)
        everyone = collectives.gather_rows(self._rows, self._sizes, world)
        all_labels = collectives.gather_rows(row_labels, self._sizes, world)
        self._column_order = all_labels.argsort(stable=True)
        self._columns = everyone[self._column_order]
        self.num_columns = len(all_labels)
        self.probe = everyone.detach().sum() * 0
        position = torch.empty_like(self._column_order)
        position[self._column_order] = torch.arange(len(all_labels), device=labels.device)
        start = sum(self._sizes[: world.rank])
        own = position[start : start + len(labels)]
        self._grid = Grid.of(row_labels, all_labels[self._column_order], own)

    def _reduction(
        self, score: Score, kind: Literal["sum", "logsumexp"], where: Where, num_row_vectors: int = 0
    ) -> Reduction:
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
        )

    def logsumexp(self, score: Score, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.logsumexp`; over columns only (the matrix is symmetric: use `to_columns`)."""
        if over != "columns":
            raise ValueError("a pair block reduces over columns; make the result visible with to_columns()")
        return reduce_tiles(self._reduction(score, "logsumexp", where), self._rows, self._columns)

    def sum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = (), columns: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """See `SimilarityBlock.sum`."""
        reduction = self._reduction(score, "sum", where, len(rows))
        local = reduce_tiles(reduction, self._rows, self._columns, *rows, *columns)
        return collectives.sum_over_ranks(local, self._world)

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
        return (same - 1 if where == "positive" else self.num_columns - same).to(self._rows.dtype)

    def target(self, score: Score) -> Tensor:
        """Not of a pair block: a sample has no single positive column."""
        raise ValueError("target() needs a class block: a sample has many positives among samples")

    def mined(self, select: Callable[[RowTile], Selection], value: Callable[..., Tensor]) -> Tensor:
        """See `SimilarityBlock.mined`. Rows are complete on their rank: no communication."""
        return mine(self._grid, self._rows, self._columns, self._on_sphere, select, value)

    def to_columns(self, vector: Tensor) -> Tensor:
        """See `SimilarityBlock.to_columns`."""
        return collectives.gather_rows(vector, self._sizes, self._world)[self._column_order]

    def total(self, vector: Tensor, *, of: Axis) -> Tensor:
        """See `SimilarityBlock.total`."""
        return vector.sum() if of == "columns" else collectives.sum_over_ranks(vector.sum(), self._world)

    def mean(self, vector: Tensor, *, of: Axis, where: Tensor | None = None) -> Tensor:
        """See `SimilarityBlock.mean`."""
        return mean(vector, where, self._world if of == "rows" else World())

    def soft_assigned(self, temperature: float) -> PairBlock:
        """Not of a pair block: samples have one embedding each."""
        raise ValueError("soft_assigned() needs a class block with several centers per class")

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Not of a pair block: samples have one embedding each."""
        raise ValueError("center_similarities() needs a class block with several centers per class")
