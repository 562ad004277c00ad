"""The meaning of every reduction of a block, in plain torch on the whole matrix.

For reading, for tests, and for a few hundred samples in a notebook; training uses the blocks of dmlscale.distributed.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dmlscale.losses.block import (
    LOG_OF_NOTHING,
    SMALLEST_SQUARED_DISTANCE,
    Axis,
    RowTile,
    Score,
    Selection,
    Tile,
    Where,
)
from dmlscale.losses.draws import Chance


class DenseBlock:
    """A `SimilarityBlock` that holds the whole matrix.

    Args:
        embeddings: (B, d) rows.
        labels: (B,) int64.
        proxies: None for a pair block, or (C, K, d): K centers for each of C classes.
        on_sphere: divide rows and columns by their length first.
        chance: random numbers of miners.
    """

    def __init__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        proxies: Tensor | None = None,
        *,
        on_sphere: bool = True,
        chance: Chance | None = None,
    ) -> None:
        unit = (lambda x: normalize(x, dim=-1)) if on_sphere else (lambda x: x)
        self._labels, self._chance = labels, chance or Chance()
        self._rows = unit(embeddings)
        self._centers = None if proxies is None else unit(proxies)
        if self._centers is None:
            self._columns = self._rows
            same = labels[:, None] == labels[None, :]
            itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
            self._positive, self._negative = same & ~itself, ~same
        else:
            self._columns = self._centers[:, 0]
            classes = torch.arange(len(self._centers), device=labels.device)
            self._positive = labels[:, None] == classes[None, :]
            self._negative = ~self._positive
        self.num_columns = len(self._columns)
        self._similarity = self._rows @ self._columns.T

    def _tile(self, rows: tuple[Tensor, ...] = (), columns: tuple[Tensor, ...] = ()) -> Tile:
        def squared_distance() -> Tensor:
            row_norms, column_norms = self._rows.square().sum(1), self._columns.square().sum(1)
            raw = row_norms[:, None] + column_norms[None, :] - 2 * self._similarity
            return raw.clamp_min(SMALLEST_SQUARED_DISTANCE)

        return Tile(
            self._similarity,
            squared_distance,
            tuple(vector[:, None] for vector in rows),
            tuple(vector[None, :] for vector in columns),
        )

    def _mask(self, where: Where) -> Tensor:
        return self._positive if where == "positive" else self._negative

    def logsumexp(self, score: Score, *, over: Axis, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """See `SimilarityBlock.logsumexp`."""
        values = score(self._tile(tuple(row.detach() for row in rows))).masked_fill(~self._mask(where), -torch.inf)
        dim = 1 if over == "columns" else 0
        empty = (values == -torch.inf).all(dim)
        # An empty log-sum has no gradient; its row is replaced before the log so that none is formed.
        values = torch.where(empty.unsqueeze(dim), torch.zeros_like(values), values)
        return values.logsumexp(dim).masked_fill(empty, LOG_OF_NOTHING)

    def logsumexp_and_maximum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.logsumexp_and_maximum`."""
        values = score(self._tile(rows)).detach().masked_fill(~self._mask(where), -torch.inf)
        return self.logsumexp(score, over="columns", where=where, rows=rows), values.amax(1)

    def sum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = (), columns: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """See `SimilarityBlock.sum`."""
        return score(self._tile(rows, columns)).masked_fill(~self._mask(where), 0.0).sum()

    def row_sums(self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """See `SimilarityBlock.row_sums`."""
        return score(self._tile(rows)).masked_fill(~self._mask(where), 0.0).sum(1)

    def hinge_sums(
        self, thresholds: Tensor, *, squared: bool, power: Literal[1, 2] = 1, above: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.hinge_sums`."""
        tile = self._tile()
        distance = (tile.squared_distance if squared else tile.distance)[:, None, :]  # (r, 1, c)
        counts = (
            self._negative[:, None, :] if above is None else self._negative[:, None, :] & (distance > above[:, :, None])
        )
        hinges = (thresholds[:, :, None] - distance).relu().masked_fill(~counts, 0.0)
        return (hinges**power).sum((1, 2)), (hinges > 0).sum((1, 2)).to(hinges.dtype)

    def maximum(self, score: Score, *, where: Where) -> Tensor:
        """See `SimilarityBlock.maximum`."""
        values = score(self._tile()).masked_fill(~self._mask(where), -torch.inf)
        best = values.gather(1, values.argmax(1, keepdim=True))[:, 0]
        return torch.where(self._mask(where).any(1), best, torch.zeros_like(best))

    def minimum(self, score: Score, *, where: Where) -> Tensor:
        """See `SimilarityBlock.minimum`."""
        return -self.maximum(lambda tile: -score(tile), where=where)

    def count(self, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.count`."""
        return self._mask(where).sum(1 if over == "columns" else 0).to(self._similarity.dtype)

    def target(self, score: Score, *, fixed_columns: bool = False) -> Tensor:
        """See `SimilarityBlock.target`."""
        block = self
        if fixed_columns:
            block = self._view(_columns=self._columns.detach(), _similarity=self._rows @ self._columns.detach().T)
        return score(block._tile()).masked_fill(~self._positive, 0.0).sum(1)

    def mined(self, select: Callable[[RowTile], Selection], value: Callable[..., Tensor]) -> Tensor:
        """See `SimilarityBlock.mined`."""
        squared = self._tile().squared_distance
        places = torch.arange(len(squared), device=squared.device)
        tile = _WholeRows(squared.detach().clone(), self._positive, self._negative, self._rows.shape[1])
        tile.chance = lambda columns: self._chance.uniform(places[:, None], columns)
        chosen = select(tile)
        values = value(*(squared.gather(1, columns) for columns in chosen.columns))
        return values.masked_fill(~chosen.valid, 0.0).sum(1)

    def to_columns(self, vector: Tensor) -> Tensor:
        """See `SimilarityBlock.to_columns`."""
        return vector

    def total(self, vector: Tensor, *, of: Axis) -> Tensor:
        """See `SimilarityBlock.total`."""
        return vector.sum()

    def mean(self, vector: Tensor, *, of: Axis, where: Tensor | None = None) -> Tensor:
        """See `SimilarityBlock.mean`."""
        if where is not None:
            vector = vector[where]
        return vector.sum() / max(1, len(vector))

    def soft_assigned(self, temperature: float) -> DenseBlock:
        """See `SimilarityBlock.soft_assigned`."""
        assert self._centers is not None
        each = torch.einsum("id,ckd->ick", self._rows, self._centers)
        return self._view(_similarity=(torch.softmax(each / temperature, -1) * each).sum(-1))

    def _view(self, **changed: Any) -> DenseBlock:
        view = copy(self)
        view.__dict__.update(changed)
        return view

    def positive_distances(self) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.positive_distances`."""
        squared = self._tile().squared_distance
        tile = _WholeRows(squared.detach(), self._positive, self._negative, self._rows.shape[1])
        return squared.gather(1, tile.positive_columns), tile.positive_valid

    def place_in_class(self) -> Tensor:
        """See `SimilarityBlock.place_in_class`."""
        same = self._labels[:, None] == self._labels[None, :]
        return same.tril(-1).sum(1)

    def one_pair_per_class(self) -> DenseBlock:
        """See `SimilarityBlock.one_pair_per_class`."""
        place = self.place_in_class()
        rows, columns = (place == 0) & self._positive.any(1), place == 1
        positive = self._labels[rows, None] == self._labels[None, columns]
        return self._view(
            _rows=self._rows[rows],
            _columns=self._columns[columns],
            _similarity=self._similarity[rows][:, columns],
            _positive=positive,
            _negative=~positive,
            num_columns=int(columns.sum()),
        )

    def squared_lengths(self) -> Tensor:
        """See `SimilarityBlock.squared_lengths`."""
        return self._rows.square().sum(1)

    def everyone(self) -> tuple[Tensor, Tensor]:
        """See `SimilarityBlock.everyone`."""
        return self._columns.detach(), self._labels

    def class_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `SimilarityBlock.class_sums`."""
        one_hot = self._positive.to(self._rows.dtype)
        present = self._positive.any(0).nonzero()[:, 0]
        return present, (one_hot.T @ self._rows.detach())[present], one_hot.sum(0)[present]

    def between_centers(self) -> DenseBlock:
        """See `SimilarityBlock.between_centers`."""
        present = self._positive.any(0)
        itself = torch.eye(len(present), dtype=torch.bool, device=present.device)[present]
        rows = self._columns[present]
        return self._view(_rows=rows, _similarity=rows @ self._columns.T, _positive=itself, _negative=~itself)

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """See `SimilarityBlock.center_similarities`."""
        assert self._centers is not None
        return value(self._centers @ self._centers.mT).sum()


class _WholeRows:
    """`RowTile` over all rows of a dense pair block."""

    chance: Callable[[Tensor], Tensor]

    def __init__(self, squared_distance: Tensor, positive: Tensor, negative: Tensor, dim: int) -> None:
        self.squared_distance, self.dim = squared_distance, dim
        counts = positive.sum(1)
        most = int(counts.max()) if len(counts) else 0
        # A stable sort of the mask brings each row's positives to the front.
        self.positive_columns = positive.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
        self.positive_valid = torch.arange(most, device=counts.device)[None, :] < counts[:, None]
        self._same_class = ~negative

    def fill_class(self, matrix: Tensor, value: float) -> None:
        matrix.masked_fill_(self._same_class, value)

    def negative_at(self, fraction: Tensor) -> tuple[Tensor, Tensor]:
        number = (~self._same_class).sum(1, keepdim=True)
        order = self._same_class.int().sort(dim=1, stable=True).indices  # negatives first
        place = (fraction * number).long().clamp_max(number - 1).clamp_min(0)
        return order.gather(1, place), number > 0

    def draws(self) -> Tensor:
        return self.chance(self.positive_columns)
