"""What a loss sees: a block of the global similarity matrix, through reductions that are always global.

A loss never sees a rank, a process group or the matrix itself. `dmlscale.losses.dense.DenseBlock` is the meaning
of every reduction in plain torch; `PairBlock` and `ClassBlock` of
dmlscale.distributed compute the same numbers in tiles, over ranks.

Legend: r rows (samples), c columns (samples of a pair block, classes of a class block), P positive entries.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

Axis = Literal["rows", "columns"]
Where = Literal["positive", "negative"]

# The log of an empty sum. Finite, so that differences and logaddexp of two empty sums have a gradient (zero).
LOG_OF_NOTHING = -1e30
# Below this squared distance two points count as equal and the distance has gradient zero, as in torch.cdist.
SMALLEST_SQUARED_DISTANCE = 1e-12


class Tile:
    """One rectangle of the similarity matrix, handed to the elementwise functions of a loss.

    Args:
        similarity: (r, c) dot products of rows and columns; cosines where the loss normalises.
        squared_distance: computes the (r, c) squared Euclidean distances when they are first asked for.
        rows: the per-row vectors the loss passed, each cut to (r, 1).
        columns: the per-column vectors the loss passed, each cut to (1, c).

    Attributes:
        kept: what a score's own derivative needs of its value, if anything.
    """

    kept: Tensor | None = None

    def __init__(
        self,
        similarity: Tensor,
        squared_distance: Callable[[], Tensor],
        rows: tuple[Tensor, ...] = (),
        columns: tuple[Tensor, ...] = (),
    ) -> None:
        self.similarity = similarity
        self.rows = rows
        self.columns = columns
        self._squared_distance = squared_distance

    @cached_property
    def squared_distance(self) -> Tensor:
        """(r, c) squared Euclidean distance, never below `SMALLEST_SQUARED_DISTANCE`.

        On the sphere every vector counts as one of length one, also the zero vector.
        """
        return self._squared_distance()

    @cached_property
    def distance(self) -> Tensor:
        """(r, c) Euclidean distance."""
        return self.squared_distance.sqrt()

    def take_distance(self) -> Tensor:
        """`distance`, in the memory of the squared distance, which is gone afterwards."""
        self.__dict__["distance"] = self.squared_distance.sqrt_()
        del self.__dict__["squared_distance"]
        return self.distance


Score = Callable[[Tile], Tensor]


class Selection:
    """For each row, the columns that a miner chose: ``m`` tuples of column positions.

    Args:
        columns: tensors (r, m) int64, one per role, e.g. (positive, negative).
        valid: (r, m) bool; False entries are padding and count for nothing.
    """

    def __init__(self, columns: tuple[Tensor, ...], valid: Tensor) -> None:
        self.columns = columns
        self.valid = valid


class RowTile(Protocol):
    """Some whole rows of a pair block, for miners. Columns are sorted by label."""

    squared_distance: Tensor  # (r, c)
    positive_columns: Tensor  # (r, m) columns of the same class, the row itself excluded; padded
    positive_valid: Tensor  # (r, m) bool
    dim: int  # d, of the embeddings

    def fill_class(self, matrix: Tensor, value: float) -> None:
        """Overwrites, in place, the entries of ``matrix`` (r, c) whose column has the row's class."""

    def negative_at(self, fraction: Tensor) -> tuple[Tensor, Tensor]:
        """The negative column that lies at each fraction in [0, 1) of the row's negatives -> (r, m), (r, 1) if any."""

    def draws(self) -> Tensor:
        """A random number in [0, 1) for each (row, positive) -> (r, m); of seed, step and the two samples alone."""


class BlockError(ValueError):
    """A reduction that this kind of block does not offer."""


class SimilarityBlock(Protocol):
    """This rank's rectangle of the global similarity matrix. Every result is global, whatever the rank holds.

    "Positive" entries join two samples of one class (never a sample with itself) or a sample with its own class;
    "negative" entries are those of different classes. Vectors over rows or columns hold what this rank owns.

    A reduction that a kind of block does not offer raises `BlockError`.
    """

    num_columns: int  # of the global matrix: samples of the batch, or classes

    def logsumexp(self, score: Score, *, over: Axis, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """Log of the sum of ``exp(score)`` -> (r,) over columns, (c,) over rows; `LOG_OF_NOTHING` if empty.

        ``rows`` are seen by the score and get no gradient.
        """

    def logsumexp_and_maximum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """`logsumexp` over columns, and without gradient the highest score of each row -> (r,) both.

        The highest score of a row without entries is below every finite score.
        """

    def sum(
        self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = (), columns: tuple[Tensor, ...] = ()
    ) -> Tensor:
        """Sum of the score over all entries of the global matrix -> ()."""

    def row_sums(self, score: Score, *, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """Sum of the score over the entries of each row -> (r,)."""

    def hinge_sums(
        self, thresholds: Tensor, *, squared: bool, power: Literal[1, 2] = 1, above: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum over the negatives of each row and its m thresholds of ``relu(threshold - D)^power`` -> (r,).

        Args:
            thresholds: (r, m); -inf is padding.
            squared: D is the squared Euclidean distance.
            power: of the hinge.
            above: (r, m) count only negatives with ``D > above``.

        Returns:
            The sums, and without gradient the number of terms that are positive -> (r,).
        """

    def maximum(self, score: Score, *, where: Where) -> Tensor:
        """Largest score of each row -> (r,); gradient to the attaining entry; 0 without entries."""

    def minimum(self, score: Score, *, where: Where) -> Tensor:
        """Smallest score of each row -> (r,); gradient to the attaining entry; 0 without entries."""

    def count(self, *, over: Axis, where: Where) -> Tensor:
        """Number of entries of each row (over columns) or column (over rows), in the embeddings' dtype."""

    def target(self, score: Score, *, fixed_columns: bool = False) -> Tensor:
        """Score of each row with its own class -> (r,); class blocks only. Fixed columns get no gradient."""

    def mined(self, select: Callable[[RowTile], Selection], value: Callable[..., Tensor]) -> Tensor:
        """Sum over the selected tuples of each row of ``value(squared distances of each role)`` -> (r,)."""

    def positive_distances(self) -> tuple[Tensor, Tensor]:
        """Squared distances of each row to the others of its class -> (r, m), padded, and (r, m) which are valid."""

    def to_columns(self, vector: Tensor) -> Tensor:
        """A per-row vector (r,), made visible per column -> (c,); pair blocks only."""

    def total(self, vector: Tensor, *, of: Axis) -> Tensor:
        """Sum of a per-row or per-column vector over the global matrix -> ()."""

    def mean(self, vector: Tensor, *, of: Axis, where: Tensor | None = None) -> Tensor:
        """Mean of a vector over all global rows or columns, or those where the mask is True -> (); 0 if none."""

    def one_pair_per_class(self) -> SimilarityBlock:
        """The sub-block of each class's first sample (rows) and second sample (columns), in the batch's order.

        Classes with one sample are left out; the one positive of a row is its class's second sample.
        """

    def place_in_class(self) -> Tensor:
        """For each row how many samples of its class come before it in the batch's order -> (r,) int64."""

    def squared_lengths(self) -> Tensor:
        """|x|^2 of each row -> (r,)."""

    def everyone(self) -> tuple[Tensor, Tensor]:
        """All columns (c, d) and their labels (c,), without gradient: for searches over the whole batch."""

    def soft_assigned(self, temperature: float) -> SimilarityBlock:
        """A class block with K centers per class as one with a single, softly assigned similarity per class."""

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum over all classes of ``value((classes, K, K) cosines among a class's centers) -> (classes,)``."""

    def class_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the classes in the batch that this rank owns, without gradient.

        Returns:
            (p,) their places among this rank's classes, (p, d) sum and (p,) number of their samples.
        """

    def between_centers(self) -> SimilarityBlock:
        """The class block whose rows are the centers of the classes present in the batch."""


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``; torch's own is the identity beyond 20, which is 2e-9 off in value and gradient."""
    return torch.nn.functional.softplus(x, threshold=50.0)
