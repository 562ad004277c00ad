"""Lifted structure: every positive pair against all negatives of both its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dmlscale.losses import LOSSES
from dmlscale.losses.block import SimilarityBlock, Tile
from dmlscale.losses.scores import MarginMinusDistance


def _squared_hinge(tile: Tile) -> Tensor:
    negatives = torch.logaddexp(tile.rows[0], tile.columns[0])
    return (negatives + tile.distance).relu().square()


@LOSSES.register("lifted_structure")
@dataclass(frozen=True)
class LiftedStructure:
    """Lifted structured feature embedding, smooth form (Song et al. 2016, eq. 4).

    Formula:
        ``J_ij = log( sum_{k not of y_i} exp(margin - D_ik) + sum_{l not of y_j} exp(margin - D_jl) ) + D_ij``;
        ``sum_{positive pairs} relu(J_ij)^2 / (2 |P|)`` with D the Euclidean, un-squared distance and |P| the number
        of unordered positive pairs of the global batch. J is evaluated from one log-sum per row, so the cost is
        O(B^2), not pairs x negatives.

    Block: pairs (B, B). The paper does not normalise the embeddings.

    Args:
        margin: in units of distance (the paper's alpha).
        normalize: divide the embeddings by their length first; a departure from the paper.

    Raises:
        ValueError: margin is negative.
    """

    margin: float = 1.0
    normalize: bool = False

    block: ClassVar[Literal["pairs", "classes"]] = "pairs"
    rows_per_class: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ValueError(f"lifted_structure: margin must not be negative, got {self.margin}")

    @property
    def on_sphere(self) -> bool:
        """Whether the embeddings are divided by their length before the block is made."""
        return self.normalize

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        negatives = block.logsumexp(MarginMinusDistance(self.margin), over="columns", where="negative")
        pairs = block.sum(_squared_hinge, where="positive", rows=(negatives,), columns=(block.to_columns(negatives),))
        # Every unordered pair stands in the matrix twice, in the sum as in the count.
        ordered_pairs = block.total(block.count(over="columns", where="positive"), of="rows")
        return pairs / (2 * ordered_pairs.clamp_min(1))
