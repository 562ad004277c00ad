"""Blocks over ranks: `PairBlock` owns rows of samples x samples, `ClassBlock` owns columns of samples x classes.

Both sort rows and columns by label (see grid.py), so vectors they return are in the block's own order; a loss only
ever combines them with each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.assignment import SoftAssignment
from dmlscale.distributed.best import best_entries
from dmlscale.distributed.grid import Grid
from dmlscale.distributed.mined import mine
from dmlscale.distributed.tiles import Reduction, reduce_tiles
from dmlscale.distributed.world import World
from dmlscale.losses.block import LOG_OF_NOTHING, Axis, RowTile, Score, Selection, Tile, Where


def _complete_log(shift: Tensor, total: Tensor) -> Tensor:
    return torch.where(total > 0, total.log() + shift, LOG_OF_NOTHING)


def _counts(values: Tensor, labels: Tensor) -> Tensor:
    """How often each of ``values`` occurs in ``labels``, which is sorted."""
    return torch.searchsorted(labels, values, right=True) - torch.searchsorted(labels, values)


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
        position = torch.empty_like(self._column_order)
        position[self._column_order] = torch.arange(len(all_labels), device=labels.device)
        start = sum(self._sizes[: world.rank])
        own = position[start : start + len(labels)]
        self._grid = Grid.of(row_labels, all_labels[self._column_order], own)

    def _reduction(self, score: Score, kind: str, where: Where, num_row_vectors: int = 0) -> Reduction:
        assert kind in ("sum", "logsumexp")
        return Reduction(
            grid=self._grid,
            score=score,
            kind="sum" if kind == "sum" else "logsumexp",
            over="columns",
            where=where,
            on_sphere=self._on_sphere,
            assignment=None,
            combine=_complete_log,
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
        return best_entries(self._reduction(score, "sum", where), self._rows, self._columns, largest=True)

    def minimum(self, score: Score, *, where: Where) -> Tensor:
        """See `SimilarityBlock.minimum`. Rows are complete on their rank: no communication."""
        return best_entries(self._reduction(score, "sum", where), self._rows, self._columns, largest=False)

    def count(self, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.count`; from labels alone."""
        labels = self._grid.row_labels if over == "columns" else self._grid.column_labels
        same = _counts(labels, self._grid.column_labels)
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
        return _mean(vector, where, self._world if of == "rows" else World())

    def soft_assigned(self, temperature: float) -> PairBlock:
        """Not of a pair block: samples have one embedding each."""
        raise ValueError("soft_assigned() needs a class block with several centers per class")

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Not of a pair block: samples have one embedding each."""
        raise ValueError("center_similarities() needs a class block with several centers per class")


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
        return self._centers.flatten(0, 1) if self._assignment else self._centers[:, 0]

    def _own(self) -> Tensor:
        """Local class position of the rows ``[start, stop)``."""
        return self._grid.row_labels[self._start : self._stop] - self._first

    def logsumexp(self, score: Score, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.logsumexp`; with K > 1 centers only after `soft_assigned`."""
        if where == "positive":
            return self._target_logsumexp(score, over)
        reduction = Reduction(
            grid=self._grid,
            score=score,
            kind="logsumexp",
            over=over,
            where=where,
            on_sphere=self._on_sphere,
            assignment=self._assignment,
            combine=self._combine if over == "columns" else _complete_log,
        )
        return reduce_tiles(reduction, self._rows, self._columns)

    def _combine(self, shift: Tensor, total: Tensor) -> Tensor:
        """Rows are split over ranks: bring the partial sums to a common shift and add them."""
        highest = collectives.max_over_ranks(shift, self._world)
        total = collectives.sum_over_ranks(total * (shift - highest).exp(), self._world)
        return _complete_log(highest, total)

    def _target_logsumexp(self, score: Score, over: Axis) -> Tensor:
        """Positives of a class block are one entry per row: no tile is needed."""
        if over == "columns":
            return self.target(score)
        values, own = self._target_scores(score), self._own()
        num_local = len(self._centers)
        highest = values.detach().new_full((num_local,), LOG_OF_NOTHING)
        highest = highest.scatter_reduce(0, own, values.detach(), "amax")
        total = values.new_zeros(num_local).index_add(0, own, (values - highest[own]).exp())
        present = total > 0
        # The log of an absent class would have an infinite gradient, which where() turns into nan.
        return torch.where(present, torch.where(present, total, 1.0).log() + highest, LOG_OF_NOTHING)

    def _target_scores(self, score: Score) -> Tensor:
        """Scores of this rank's rows with their own class -> (stop - start,)."""
        rows = self._rows[self._start : self._stop]
        centers = self._centers[self._own()]  # (n, K, d)
        raw = (centers @ rows.unsqueeze(2)).squeeze(2)  # (n, K)
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
        reduction = Reduction(
            grid=self._grid,
            score=score,
            kind="sum",
            over="columns",
            where=where,
            on_sphere=self._on_sphere,
            assignment=self._assignment,
            combine=_complete_log,
            num_row_vectors=len(rows),
        )
        local = reduce_tiles(reduction, self._rows, self._columns, *rows, *columns)
        return collectives.sum_over_ranks(local, self._world)

    def maximum(self, score: Score, *, where: Where) -> Tensor:
        """Not yet of a class block."""
        raise ValueError("maximum() over the classes of several ranks: no loss needs it")

    minimum = maximum

    def count(self, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.count`; from labels alone."""
        if over == "rows":
            positive = _counts(self._grid.column_labels, self._grid.row_labels)
            counts = positive if where == "positive" else len(self._rows) - positive
        else:
            counts = torch.full_like(self._grid.row_labels, 1 if where == "positive" else self.num_columns - 1)
        return counts.to(self._rows.dtype)

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
        return _mean(vector, where, self._world if of == "columns" else World())

    def soft_assigned(self, temperature: float) -> ClassBlock:
        """See `SimilarityBlock.soft_assigned`."""
        view = object.__new__(ClassBlock)
        view.__dict__.update(self.__dict__)
        view._assignment = SoftAssignment(self._centers.shape[1], temperature)
        return view

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """See `SimilarityBlock.center_similarities`. Each class is whole on its rank: one scalar all-reduce."""
        local = value(self._centers @ self._centers.mT).sum()
        return collectives.sum_over_ranks(local, self._world)


def _mean(vector: Tensor, where: Tensor | None, world: World) -> Tensor:
    if where is not None:
        # Multiplying would turn the infinity of an entry that does not count into nan.
        vector, counted = torch.where(where, vector, 0.0), where.sum()
    else:
        counted = torch.tensor(len(vector), device=vector.device)
    packed = torch.stack([vector.sum(), counted.to(vector.dtype)])
    total, count = collectives.sum_over_ranks(packed, world)
    return total / count.detach().clamp_min(1)
