"""Elementwise scores of a tile that bring their own derivative.

Any function of a tile can be a score; the block then differentiates it with autograd inside each tile. These
named ones cost a fraction of that, and know their range, so that no row maximum has to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import threshold

from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE, Tile

ZERO_DISTANCE = 1.0001 * SMALLEST_SQUARED_DISTANCE**0.5


@dataclass(frozen=True)
class ScaledSimilarity:
    """``scale * similarity + shift``.

    Args:
        scale: dimensionless multiplier of the similarity.
        shift: added to the product.
    """

    scale: float
    shift: float = 0.0

    through: Literal["similarity", "distance"] = "similarity"

    def __call__(self, tile: Tile) -> Tensor:
        scaled = tile.similarity * self.scale
        return scaled.add_(self.shift) if self.shift else scaled

    def range_on_sphere(self) -> tuple[float, float]:
        """Smallest and largest value for unit rows and columns."""
        return self.shift - abs(self.scale), self.shift + abs(self.scale)

    def pull_back_(self, tile: Tile, gradient: Tensor) -> Tensor:
        """Turns the gradient by the score into the gradient by the similarity, in place."""
        return gradient.mul_(self.scale)


@dataclass(frozen=True)
class MarginMinusDistance:
    """``margin - distance`` with the Euclidean, un-squared distance.

    Args:
        margin: in units of distance.
    """

    margin: float

    through: Literal["similarity", "distance"] = "distance"

    def __call__(self, tile: Tile) -> Tensor:
        return self.margin - tile.distance

    def range_on_sphere(self) -> tuple[float, float]:
        """Smallest and largest value for unit rows and columns."""
        return self.margin - 2.0, self.margin

    def pull_back_(self, tile: Tile, gradient: Tensor) -> Tensor:
        """Turns the gradient by the score into that by the similarity, in place: d(-D)/ds = 1/D."""
        # Equal points have no direction to move in: 1/inf. A threshold is vectorised, a mask is not.
        return gradient.div_(threshold(tile.distance, ZERO_DISTANCE, torch.inf))
