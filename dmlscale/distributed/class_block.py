"""Samples x classes: a rank owns columns.

Rows and columns are sorted by label (see grid.py), so vectors a block returns are in its own order; a loss only ever
combines them with each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.assignment import SoftAssignment
from dmlscale.distributed.best import best_entries, best_over_ranks
from dmlscale.distributed.gram import gram
from dmlscale.distributed.grid import Grid
from dmlscale.distributed.reductions import complete_log, counts, mean
from dmlscale.distributed.tiles import Reduction, reduce_tiles
from dmlscale.distributed.world import World
from dmlscale.losses.block import LOG_OF_NOTHING, Axis, RowTile, Score, Selection, Tile, Where


class ClassBlock:
    """Samples x classes. A rank owns the columns of its own classes; rows are the global batch.

    Communication: one all-gather of the sizes, one of labels, one of embeddings (backward: reduce-scatter, sum);
    per reduction over columns one all-reduce of (B,); over rows none; one scalar for each sum or mean.

    Args:
        embeddings: (b, d) this rank's embeddings.
        labels: (b,) int64 global class ids.
        proxies: (c, K, d) the centers of this rank's classes; both sides divided by their length if ``on_sphere``.
        first_class: global id of the first of them; ranks hold consecutive ranges.
        num_classes: C, over all ranks.
        world: the ranks.
        on_sphere: whether rows and columns have length one.
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        proxies: Tensor,
        *,
        first_class: int,
        num_classes: int,
        world: World,
        on_sphere: bool,
    ) -> None:
        self._world, self._on_sphere = world, on_sphere
        self.num_columns = num_classes
        sizes = collectives.gather_sizes(len(labels), world, labels.device)
        all_labels = collectives.gather_rows(labels, sizes, world)
        order = all_labels.argsort(stable=True)
        self._rows = collectives.gather_rows(embeddings, sizes, world)[order]
        self.probe = self._rows.detach().sum() * 0
        self._centers = proxies
        num_local, depth = proxies.shape[0], proxies.shape[1]
        self._assignment: SoftAssignment | None = None
        self._first = first_class
        column_labels = torch.arange(first_class, first_class + num_local, device=labels.device)
        self._grid = Grid.of(all_labels[order], column_labels, None, depth)
        # Rows of this rank's classes are consecutive.
        edges = torch.tensor([first_class, first_class + num_local], device=labels.device)
        self._start, self._stop = torch.searchsorted(self._grid.row_labels, edges).tolist()

    @property
    def _columns(self) -> Tensor:
        if self._assignment is None and self._centers.shape[1] > 1:
            raise ValueError("several centers per class need soft_assigned() first")
        return self._centers.flatten(0, 1)

    def _own(self) -> Tensor:
        """Local class position of the rows ``[start, stop)``."""
        return self._grid.row_labels[self._start : self._stop] - self._first

    def logsumexp(self, score: Score, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.logsumexp`; with K > 1 centers only after `soft_assigned`."""
        if where == "positive":
            return self._target_logsumexp(score, over)
        reduction = self._reduction(score, "logsumexp", over, where)
        return reduce_tiles(reduction, self._rows, self._columns)

    def _reduction(
        self, score: Score, kind: Literal["sum", "logsumexp"], over: Axis, where: Where, num_row_vectors: int = 0
    ) -> Reduction:
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

    def _target_logsumexp(self, score: Score, over: Axis) -> Tensor:
        """Positives of a class block are one entry per row: no tile is needed."""
        if over == "columns":
            return self.target(score)
        values, own = self._target_scores(score), self._own()
        num_local = len(self._centers)
        highest = values.detach().new_full((num_local,), LOG_OF_NOTHING)
        highest = highest.scatter_reduce(0, own, values.detach(), "amax")
        total = values.new_zeros(num_local).index_add(0, own, (values - highest[own]).exp())
        present = total != 0  # not `> 0`: nan must stay visible
        # The log of an absent class would have an infinite gradient, which where() turns into nan.
        return torch.where(present, torch.where(present, total, 1.0).log() + highest, LOG_OF_NOTHING)

    def _target_scores(self, score: Score) -> Tensor:
        """Scores of this rank's rows with their own class -> (stop - start,)."""
        rows = self._rows[self._start : self._stop]
        centers = self._centers[self._own()]  # (n, K, d)
        # Elementwise: a matrix product's gradient would be rounded under a caller's autocast.
        raw = (centers * rows.unsqueeze(1)).sum(2)  # (n, K)
        if self._assignment is None:
            raw = raw[:, :1]
            similarity = raw
        else:
            similarity = (torch.softmax(raw / self._assignment.temperature, 1) * raw).sum(1, keepdim=True)

        def squared_distance() -> Tensor:
            return (rows - centers[:, 0]).square().sum(1, keepdim=True).clamp_min(1e-12)

        return score(Tile(similarity, squared_distance))[:, 0]

    def target(self, score: Score) -> Tensor:
        """See `SimilarityBlock.target`. The owner of a class computes; one all-reduce of (B,) tells the others."""
        values = self._rows.new_zeros(len(self._rows))
        index = torch.arange(self._start, self._stop, device=values.device)
        return collectives.sum_over_ranks(values.index_add(0, index, self._target_scores(score)), self._world)

    def sum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = (), columns: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """See `SimilarityBlock.sum`."""
        reduction = self._reduction(score, "sum", "columns", where, len(rows))
        local = reduce_tiles(reduction, self._rows, self._columns, *rows, *columns)
        return collectives.sum_over_ranks(local, self._world)

    def maximum(self, score: Score, *, where: Where) -> Tensor:
        """See `SimilarityBlock.maximum`. Three all-reduces of (B,): the best, its owner, its value."""
        return self._best(score, where, largest=True)

    def minimum(self, score: Score, *, where: Where) -> Tensor:
        """See `SimilarityBlock.minimum`. Three all-reduces of (B,): the best, its owner, its value."""
        return self._best(score, where, largest=False)

    def _best(self, score: Score, where: Where, *, largest: bool) -> Tensor:
        if self._centers.shape[1] > 1:
            raise ValueError("maximum() and minimum() of a class block need one center per class")
        reduction = self._reduction(score, "sum", "columns", where)
        values, found = best_entries(reduction, self._rows, self._columns, largest=largest)
        return best_over_ranks(values, found, self._world, largest=largest)

    def count(self, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.count`; from labels alone."""
        if over == "rows":
            positive = counts(self._grid.column_labels, self._grid.row_labels)
            number = positive if where == "positive" else len(self._rows) - positive
        else:
            number = torch.full_like(self._grid.row_labels, 1 if where == "positive" else self.num_columns - 1)
        return number.to(self._rows.dtype)

    def mined(self, select: Callable[[RowTile], Selection], value: Callable[..., Tensor]) -> Tensor:
        """Not of a class block: its rows are split over ranks."""
        raise ValueError("mined() needs whole rows on one rank: a pair block")

    def to_columns(self, vector: Tensor) -> Tensor:
        """Not of a class block: rows are samples, columns are classes."""
        raise ValueError("to_columns() needs a pair block")

    def total(self, vector: Tensor, *, of: Axis) -> Tensor:
        """See `SimilarityBlock.total`."""
        return vector.sum() if of == "rows" else collectives.sum_over_ranks(vector.sum(), self._world)

    def mean(self, vector: Tensor, *, of: Axis, where: Tensor | None = None) -> Tensor:
        """See `SimilarityBlock.mean`."""
        return mean(vector, where, self._world if of == "columns" else World())

    def soft_assigned(self, temperature: float) -> ClassBlock:
        """See `SimilarityBlock.soft_assigned`."""
        view = object.__new__(ClassBlock)
        view.__dict__.update(self.__dict__)
        view._assignment = SoftAssignment(self._centers.shape[1], temperature)
        return view

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """See `SimilarityBlock.center_similarities`. Each class is whole on its rank: one scalar all-reduce."""
        local = value(gram(self._centers)).sum()
        return collectives.sum_over_ranks(local, self._world)
