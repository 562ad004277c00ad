"""Triplet margin loss with mining over the global batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from dmlscale.losses import LOSSES
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE, SimilarityBlock, Tile
from dmlscale.losses.mining import semi_hard


@LOSSES.register("triplet")
@dataclass(frozen=True)
class Triplet:
    """Triplet loss: ``relu(D(anchor, positive) - D(anchor, negative) + margin)`` over mined triplets.

    Formula:
        ``semi_hard`` (Schroff et al. 2015, FaceNet, section 3.2, the selection rule of TensorFlow's
        ``triplet_semihard_loss``): for every (anchor, positive) the nearest negative that is farther than the
        positive, or the farthest negative if there is none; mean over all positive pairs.
        ``batch_hard`` (Hermans et al. 2017, eq. 5): for every anchor the farthest positive and the nearest negative;
        mean over all anchors that have both.
        (pytorch-metric-learning's "semihard" miner is another rule: it returns *all* semi-hard triplets.)

    Block: pairs (B, B).

    Args:
        mining: which triplets of the global batch count.
        margin: in units of D.
        normalize: divide embeddings by their length; None takes the paper's choice for the mining
            (semi_hard: yes; batch_hard: no).
        squared: D is the squared Euclidean distance; None takes the paper's choice (semi_hard: yes; batch_hard: no).

    Raises:
        ValueError: margin is negative, or mining is unknown.
    """

    mining: Literal["semi_hard", "batch_hard"] = "semi_hard"
    margin: float = 0.2
    normalize: bool | None = None
    squared: bool | None = None

    block: ClassVar[Literal["pairs", "classes"]] = "pairs"
    rows_per_class: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise ValueError(f"triplet: margin must not be negative, got {self.margin}")
        if self.mining not in ("semi_hard", "batch_hard"):
            raise ValueError(f"triplet: mining must be 'semi_hard' or 'batch_hard', got {self.mining!r}")

    @property
    def on_sphere(self) -> bool:
        """Whether the embeddings are divided by their length before the block is made."""
        return self.mining == "semi_hard" if self.normalize is None else self.normalize

    @property
    def uses_squared_distance(self) -> bool:
        """Whether D is the squared Euclidean distance."""
        return self.mining == "semi_hard" if self.squared is None else self.squared

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        return self._semi_hard(block) if self.mining == "semi_hard" else self._batch_hard(block)

    def _semi_hard(self, block: SimilarityBlock) -> Tensor:
        def hinge(to_positive: Tensor, to_negative: Tensor) -> Tensor:
            if not self.uses_squared_distance:
                to_positive, to_negative = _root(to_positive), _root(to_negative)
            return (to_positive - to_negative + self.margin).relu()

        per_anchor = block.mined(semi_hard, hinge)
        has_negative = block.count(over="columns", where="negative") > 0
        pairs = block.count(over="columns", where="positive") * has_negative
        return block.total(per_anchor, of="rows") / block.total(pairs, of="rows").clamp_min(1)

    def _batch_hard(self, block: SimilarityBlock) -> Tensor:
        farthest_positive = block.maximum(self._distance, where="positive")
        nearest_negative = block.minimum(self._distance, where="negative")
        has_both = (block.count(over="columns", where="positive") > 0) & (
            block.count(over="columns", where="negative") > 0
        )
        hinge = (farthest_positive - nearest_negative + self.margin).relu()
        return block.mean(hinge, of="rows", where=has_both)

    def _distance(self, tile: Tile) -> Tensor:
        return tile.squared_distance if self.uses_squared_distance else tile.distance


def _root(squared_distance: Tensor) -> Tensor:
    return squared_distance.clamp_min(SMALLEST_SQUARED_DISTANCE).sqrt()
