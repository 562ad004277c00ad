"""Samples x classes: a rank owns the columns of its own classes."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.assignment import SoftAssignment
from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.column_block import ColumnBlock, Part
from dmlscale.distributed.columns import Columns
from dmlscale.distributed.gram import sum_of_centers
from dmlscale.distributed.grid import Grid
from dmlscale.distributed.reductions import counts
from dmlscale.distributed.tiles import Kind, Reduction
from dmlscale.distributed.world import World
from dmlscale.losses.block import LOG_OF_NOTHING, SMALLEST_SQUARED_DISTANCE, Axis, BlockError, Score, Tile, Where


class ClassRange(NamedTuple):
    """The classes ``[start, stop)`` of a rank, among all C."""

    start: int
    stop: int
    num_classes: int


class ClassBlock(ColumnBlock):
    """Samples x classes. A rank owns the columns of its own classes; rows are the global batch.

    Communication: that of `ColumnBlock`.

    Args:
        batch: this rank's embeddings, divided by their length if ``on_sphere``, global class ids and identities.
        proxies: (c, K, d) the raw centers of this rank's classes; divided by their length here if ``on_sphere``.
        where: which classes they are.
        world: the ranks.
        on_sphere: whether rows and columns have length one.
    """

    kind = "a class block"

    def __init__(self, batch: LocalBatch, proxies: Tensor, where: ClassRange, *, world: World, on_sphere: bool) -> None:
        self._gather(batch, where, proxies.shape[1], world, on_sphere)
        self._hold(proxies, torch.arange(where.start, where.stop, device=self._row_labels.device))

    def _gather(self, batch: LocalBatch, where: ClassRange, depth: int, world: World, on_sphere: bool) -> None:
        """Takes the samples of all ranks as rows, and finds those of this rank's classes."""
        super().__init__(batch, world, on_sphere=on_sphere)
        self.num_columns, self._where, self._depth = where.num_classes, where, depth
        # Rows of this rank's classes are consecutive.
        edges = torch.tensor(where[:2], device=self._row_labels.device)
        self._start, self._stop = torch.searchsorted(self._row_labels, edges).tolist()

    def _hold(self, proxies: Tensor, class_ids: Tensor) -> None:
        """Takes proxies (c, K, d) of classes (c,) ascending as the columns."""
        self._parts = (self._part(proxies, class_ids),)
        self.probe = self.probe + self._columns.handle

    def _part(self, proxies: Tensor, class_ids: Tensor, log_weight: float = 0.0) -> Part:
        columns = Columns(proxies.flatten(0, 1), dtype=self._rows.dtype, unit=self._on_sphere)
        return Part(columns, self._grid_of(class_ids), log_weight)

    def _grid_of(self, class_ids: Tensor) -> Grid:
        return Grid.of(self._row_labels, class_ids, one_positive=True, depth=self._depth)

    @property
    def _columns(self) -> Columns:
        return self._parts[0].columns

    @property
    def _class_ids(self) -> Tensor:
        return self._parts[0].grid.column_labels

    def _own(self) -> Tensor:
        """Column of the rows ``[start, stop)``, whose classes this rank owns."""
        return torch.searchsorted(self._class_ids, self._row_labels[self._start : self._stop])

    def _reduction(
        self, grid: Grid, score: Score, kind: Kind, over: Axis, where: Where, num_row_vectors: int = 0
    ) -> Reduction:
        if self._assignment is None and self._depth > 1:
            raise BlockError("several centers per class need soft_assigned() first")
        return super()._reduction(grid, score, kind, over, where, num_row_vectors)

    def logsumexp(self, score: Score, *, over: Axis, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """See `SimilarityBlock.logsumexp`; with K > 1 centers only after `soft_assigned`."""
        if where == "negative":
            return super().logsumexp(score, over=over, where=where, rows=rows)
        if over == "columns":
            return self.target(score)
        return self._target_logsumexp(score)

    def _target_logsumexp(self, score: Score) -> Tensor:
        """Positives of a class block are one entry per row: no tile is needed."""
        values, own = self._target_scores(score), self._own()
        num_local = len(self._class_ids)
        highest = values.detach().new_full((num_local,), LOG_OF_NOTHING)
        highest = highest.scatter_reduce(0, own, values.detach(), "amax")
        total = values.new_zeros(num_local).index_add(0, own, (values - highest[own]).exp())
        present = total != 0  # not `> 0`: nan must stay visible
        # The log of an absent class would have an infinite gradient, which where() turns into nan.
        return torch.where(present, torch.where(present, total, 1.0).log() + highest, LOG_OF_NOTHING)

    def _target_scores(self, score: Score, *, fixed_columns: bool = False) -> Tensor:
        """Scores of this rank's rows with their own class -> (stop - start,)."""
        rows, own = self._rows[self._start : self._stop], self._own()
        each = own[:, None] * self._depth + torch.arange(self._depth, device=own.device)
        centers = self._columns.take(each.flatten()).unflatten(0, (-1, self._depth))  # (n, K, d)
        centers = centers.detach() if fixed_columns else centers
        # Elementwise: a matrix product's gradient would be rounded under a caller's autocast.
        raw = (centers * rows.unsqueeze(1)).sum(2)  # (n, K)
        if self._assignment is None:
            raw = raw[:, :1]
            similarity = raw
        else:
            similarity = (torch.softmax(raw / self._assignment.temperature, 1) * raw).sum(1, keepdim=True)

        def squared_distance() -> Tensor:
            return (rows - centers[:, 0]).square().sum(1, keepdim=True).clamp_min(SMALLEST_SQUARED_DISTANCE)

        return score(Tile(similarity, squared_distance))[:, 0]

    def target(self, score: Score, *, fixed_columns: bool = False) -> Tensor:
        """See `SimilarityBlock.target`. The owner of a class computes; one all-reduce of (B,) tells the others."""
        values = self._rows.new_zeros(len(self._rows))
        index = torch.arange(self._start, self._stop, device=values.device)
        local = values.index_add(0, index, self._target_scores(score, fixed_columns=fixed_columns))
        return collectives.sum_over_ranks(local, self._world)

    def count(self, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.count`; from labels alone."""
        if over == "rows":
            positive = counts(self._class_ids, self._row_labels)
            number = positive if where == "positive" else len(self._rows) - positive
        else:
            number = torch.full_like(self._row_labels, 1 if where == "positive" else self.num_columns - 1)
        return number.to(self._rows.dtype)

    def soft_assigned(self, temperature: float) -> Self:
        """See `SimilarityBlock.soft_assigned`."""
        view = copy(self)
        view._assignment = SoftAssignment(self._depth, temperature)
        return view

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """See `SimilarityBlock.center_similarities`. Each class is whole on its rank: one scalar all-reduce."""
        return collectives.sum_over_ranks(sum_of_centers(self._columns, self._depth, value), self._world)

    def class_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `SimilarityBlock.class_sums`. Every rank has all rows: no communication."""
        mine = slice(self._start, self._stop)
        present, place, counts = self._row_labels[mine].unique(return_inverse=True, return_counts=True)
        sums = self._rows.new_zeros((len(present), self._rows.shape[1]))
        sums.index_add_(0, place, self._rows.detach()[mine])
        return present - self._where.start, sums, counts.to(sums.dtype)

    def between_centers(self) -> ClassBlock:
        """See `SimilarityBlock.between_centers`. One more block, on the same columns."""
        present = self._row_labels[self._start : self._stop].unique()
        centers = self._columns.take((present - self._where.start) * self._depth)
        view = object.__new__(ClassBlock)
        view._gather(LocalBatch(centers, present, present), self._where, self._depth, self._world, self._on_sphere)
        view._parts = (Part(self._columns, view._grid_of(self._class_ids)),)
        return view
