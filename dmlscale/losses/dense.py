"""The meaning of every reduction of a block, in plain torch on the whole matrix.

For reading, for tests, and for a few hundred samples in a notebook; training uses the blocks of dmlscale.distributed.
"""

from __future__ import annotations

from collections.abc import Callable

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


class DenseBlock:
    """A `SimilarityBlock` that holds the whole matrix.

    Args:
        embeddings: (B, d) rows.
        labels: (B,) int64.
        proxies: None for a pair block, or (C, K, d): K centers for each of C classes.
        on_sphere: divide rows and columns by their length first.
    """

    def __init__(
        self, embeddings: Tensor, labels: Tensor, proxies: Tensor | None = None, *, on_sphere: bool = True
    ) -> None:
        unit = (lambda x: normalize(x, dim=-1)) if on_sphere else (lambda x: x)
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

    def logsumexp(self, score: Score, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.logsumexp`."""
        values = score(self._tile()).masked_fill(~self._mask(where), -torch.inf)
        dim = 1 if over == "columns" else 0
        empty = ~self._mask(where).any(dim)
        # An empty log-sum has no gradient; its row is replaced before the log so that none is formed.
        values = torch.where(empty.unsqueeze(dim), torch.zeros_like(values), values)
        return values.logsumexp(dim).masked_fill(empty, LOG_OF_NOTHING)

    def sum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = (), columns: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """See `SimilarityBlock.sum`."""
        return score(self._tile(rows, columns)).masked_fill(~self._mask(where), 0.0).sum()

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

    def target(self, score: Score) -> Tensor:
        """See `SimilarityBlock.target`."""
        return score(self._tile()).masked_fill(~self._positive, 0.0).sum(1)

    def mined(self, select: Callable[[RowTile], Selection], value: Callable[..., Tensor]) -> Tensor:
        """See `SimilarityBlock.mined`."""
        squared = self._tile().squared_distance
        chosen = select(_WholeRows(squared.detach().clone(), self._positive, self._negative))
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
        view = object.__new__(DenseBlock)
        view.__dict__.update(self.__dict__)
        each = torch.einsum("id,ckd->ick", self._rows, self._centers)
        view._similarity = (torch.softmax(each / temperature, -1) * each).sum(-1)
        return view

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """See `SimilarityBlock.center_similarities`."""
        assert self._centers is not None
        return value(self._centers @ self._centers.mT).sum()


class _WholeRows:
    """`RowTile` over all rows of a dense pair block."""

    def __init__(self, squared_distance: Tensor, positive: Tensor, negative: Tensor) -> None:
        self.squared_distance = squared_distance
        counts = positive.sum(1)
        most = int(counts.max()) if len(counts) else 0
        # A stable sort of the mask brings each row's positives to the front.
        self.positive_columns = positive.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
        self.positive_valid = torch.arange(most, device=counts.device)[None, :] < counts[:, None]
        self._same_class = ~negative

    def fill_class(self, matrix: Tensor, value: float) -> None:
        matrix.masked_fill_(self._same_class, value)
