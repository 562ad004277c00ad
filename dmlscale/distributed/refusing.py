"""What a kind of block cannot reduce it refuses, with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NoReturn

from torch import Tensor

from dmlscale.losses.block import BlockError, RowTile, Score, Selection, SimilarityBlock

_ROWS_ARE_SPLIT = "whole rows on one rank are needed, and its columns are split over ranks"
_NO_CLASSES = "it has no classes' rows"


class RefusingBlock(SimilarityBlock):
    """Refuses every reduction that not every kind of block offers; the kinds override what they do offer."""

    kind: str

    def _refuse(self, what: str, why: str) -> NoReturn:
        raise BlockError(f"{self.kind} offers no {what}: {why}")

    def target(self, score: Score, *, fixed_columns: bool = False) -> Tensor:
        """Only a class block has one positive column for every row."""
        self._refuse("target()", "a sample has many positives among samples")

    def hinge_sums(
        self, thresholds: Tensor, *, squared: bool, power: Literal[1, 2] = 1, above: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Between samples."""
        self._refuse("hinge_sums()", "they are sums over samples")

    def mined(self, select: Callable[[RowTile], Selection], value: Callable[..., Tensor]) -> Tensor:
        """Miners look at whole rows."""
        self._refuse("mined()", _ROWS_ARE_SPLIT)

    def positive_distances(self) -> tuple[Tensor, Tensor]:
        """Of whole rows."""
        self._refuse("positive_distances()", _ROWS_ARE_SPLIT)

    def to_columns(self, vector: Tensor) -> Tensor:
        """Only where rows and columns are the same samples."""
        self._refuse("to_columns()", "rows and columns are different things")

    def place_in_class(self) -> Tensor:
        """Among the samples of the batch."""
        self._refuse("place_in_class()", "it is a matter of the batch alone")

    def squared_lengths(self) -> Tensor:
        """Where a rank owns whole rows; where all ranks hold all rows, each would count them again."""
        self._refuse("squared_lengths()", "its rows are on all ranks")

    def one_pair_per_class(self) -> SimilarityBlock:
        """Of the samples of the batch."""
        self._refuse("one_pair_per_class()", "pairs are drawn from the batch alone")

    def everyone(self) -> tuple[Tensor, Tensor]:
        """All columns on every rank."""
        self._refuse("everyone()", "its columns are split over ranks")

    def soft_assigned(self, temperature: float) -> SimilarityBlock:
        """Of several centers per class."""
        self._refuse("soft_assigned()", _NO_CLASSES)

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Of several centers per class."""
        self._refuse("center_similarities()", _NO_CLASSES)

    def class_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of a bank's classes."""
        self._refuse("class_sums()", _NO_CLASSES)

    def between_centers(self) -> SimilarityBlock:
        """Of a bank's classes."""
        self._refuse("between_centers()", _NO_CLASSES)
