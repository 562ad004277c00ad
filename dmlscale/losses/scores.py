"""Elementwise scores of a tile that bring their own derivative.

Any function of a tile can be a score; the block then differentiates it with autograd inside each tile. These
named ones cost a fraction of that, and know their range, so that no row maximum has to be kept. A loss with a score of
its own keeps it in its file (circle.py, multi_similarity.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, threshold_

from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE, Tile

ZERO_DISTANCE = 1.0001 * SMALLEST_SQUARED_DISTANCE**0.5


class NamedScore(ABC):
    """A score with a derivative of its own.

    Attributes:
        through: what of the tile it is a function of.
        symmetric: whether rows and columns can change places: true of every score without vectors.
    """

    through: ClassVar[Literal["similarity", "distance"]] = "similarity"
    symmetric: ClassVar[bool] = True

    @property
    def upper_bound(self) -> float | None:
        """A number that no score exceeds, whatever the rows and columns."""
        return None

    def range_on_sphere(self) -> tuple[float, float] | None:
        """Smallest and largest value for unit rows and columns; None if vectors of the loss decide."""
        return None

    def absorbed(self) -> tuple[float, Self]:
        """A factor for the rows, and the score that is left when they carry it: saves a sweep over every tile."""
        return 1.0, self

    @abstractmethod
    def __call__(self, tile: Tile) -> Tensor:
        """The scores of a tile -> (r, c)."""

    @abstractmethod
    def minus(self, tile: Tile, offset: Tensor | float) -> Tensor:
        """``score - offset`` -> (r, c), in as few sweeps over the tile as possible; may overwrite its similarity."""

    def pull_back_(self, tile: Tile, gradient: Tensor) -> Tensor:
        """Turns the gradient by the score into that by the similarity, in place; the tile is used up."""
        return gradient


@dataclass(frozen=True)
class ScaledSimilarity(NamedScore):
    """``scale * similarity + shift``.

    Args:
        scale: dimensionless multiplier of the similarity.
        shift: added to the product.
    """

    scale: float
    shift: float = 0.0

    def absorbed(self) -> tuple[float, ScaledSimilarity]:
        """See `NamedScore`."""
        return self.scale, replace(self, scale=1.0)

    def __call__(self, tile: Tile) -> Tensor:
        """The scores of a tile -> (r, c)."""
        return tile.similarity * self.scale + self.shift

    def minus(self, tile: Tile, offset: Tensor | float) -> Tensor:
        """``score - offset`` -> (r, c)."""
        # A scale of one means that the product was scaled before: what is left is done in place, or not at all.
        scaled = tile.similarity if self.scale == 1 else tile.similarity * self.scale
        offset = offset - self.shift
        return scaled if isinstance(offset, float) and offset == 0 else scaled.sub_(offset)

    def range_on_sphere(self) -> tuple[float, float]:
        """Smallest and largest value for unit rows and columns."""
        return self.shift - abs(self.scale), self.shift + abs(self.scale)

    def pull_back_(self, tile: Tile, gradient: Tensor) -> Tensor:
        """Turns the gradient by the score into the gradient by the similarity, in place."""
        return gradient if self.scale == 1 else gradient.mul_(self.scale)


@dataclass(frozen=True)
class MarginMinusDistance(NamedScore):
    """``margin - distance`` with the Euclidean, un-squared distance.

    Args:
        margin: in units of distance.
    """

    margin: float

    through: ClassVar[Literal["similarity", "distance"]] = "distance"

    @property
    def upper_bound(self) -> float:
        """A distance is never negative."""
        return self.margin

    def __call__(self, tile: Tile) -> Tensor:
        """The scores of a tile -> (r, c)."""
        return self.margin - tile.distance

    def minus(self, tile: Tile, offset: Tensor | float) -> Tensor:
        """``score - offset`` -> (r, c)."""
        return (self.margin - offset) - tile.take_distance()

    def range_on_sphere(self) -> tuple[float, float]:
        """Smallest and largest value for unit rows and columns."""
        return self.margin - 2.0, self.margin

    def pull_back_(self, tile: Tile, gradient: Tensor) -> Tensor:
        """Turns the gradient by the score into that by the similarity, in place: d(-D)/ds = 1/D; uses up the tile."""
        # Equal points have no direction to move in: 1/inf. A threshold is vectorised, a mask is not.
        return gradient.div_(threshold_(tile.distance, ZERO_DISTANCE, torch.inf))


def named(score: object) -> NamedScore | None:
    """The score itself, if it brings its own derivative."""
    return score if isinstance(score, NamedScore) else None
