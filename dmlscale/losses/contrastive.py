"""Contrastive: positive pairs together, negative pairs at least a margin apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, PairLoss
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE, SimilarityBlock, Tile
from dmlscale.losses.hyper_parameters import require_choice, require_not_negative
from dmlscale.losses.search_space import Choice, LogUniform, SearchSpace, Uniform


@LOSSES.register("contrastive")
@dataclass(frozen=True)
class Contrastive(PairLoss):
    """Contrastive loss (Hadsell et al. 2006, "Dimensionality Reduction by Learning an Invariant Mapping", eq. 4).

    Formula:
        ``f(relu(D - positive_margin))`` for positive and ``f(relu(margin - D))`` for negative pairs, with D the
        Euclidean, un-squared distance and ``f(u) = u^2 / 2`` (the paper's) or ``f(u) = u``.
        The paper sums over a given set of pairs and leaves their weights open; a batch has far more negatives than
        positives, so it matters what each sum is divided by (``average``):
        "active": by the number of its own pairs with a positive term, as pytorch-metric-learning does;
        "all": by the number of its own pairs; "pairs": both by the number of all pairs, the paper's sum up to a factor.

    Block: pairs (B, B). The paper does not normalise the embeddings.

    Args:
        margin: of negative pairs, in units of distance.
        positive_margin: distance below which a positive pair counts as close enough; 0 in the paper.
        squared: f is half the square; False gives pytorch-metric-learning's default.
        average: what the two sums are divided by.
        normalize: divide the embeddings by their length first.

    Raises:
        ValueError: a margin is negative, or average is unknown.
    """

    margin: float = 1.0
    positive_margin: float = 0.0
    squared: bool = True
    average: Literal["active", "all", "pairs"] = "active"
    normalize: bool = False

    paper: ClassVar[str] = "Hadsell et al. 2006, Dimensionality Reduction by Learning an Invariant Mapping"
    divided_by: ClassVar[str] = (
        "positive and negative terms each by the number of their pairs with a term above zero "
        "(average='active'), of their pairs ('all'), or both by the number of all pairs ('pairs')"
    )
    # Centers lie between the paper's margin of 1 and the optima of Musgrave et al. 2020 for un-squared terms: 0.38 to
    # 0.54 for negatives and at most 0.29 for positives. The ranges meet in one point, so that pull and push never
    # contradict each other.
    search_space: ClassVar[SearchSpace] = {
        "margin": LogUniform(0.35, 1.5),
        "positive_margin": Uniform(0.0, 0.35),
        "squared": Choice((True, False)),
    }

    def __post_init__(self) -> None:
        require_not_negative(self, "contrastive", "margin", "positive_margin")
        require_choice(self, "contrastive", "average", "active", "all", "pairs")

    @property
    def on_sphere(self) -> bool:
        """Whether the embeddings are divided by their length before the block is made."""
        return self.normalize

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        num_positive = block.count(over="columns", where="positive")
        num_negative = block.count(over="columns", where="negative")
        thresholds = torch.full_like(num_positive, self.margin)[:, None]
        push, active = block.hinge_sums(thresholds, squared=False, power=2 if self.squared else 1)
        pull = block.row_sums(self._excess, where="positive")
        if self.squared:
            pull, push = pull / 2, push / 2
        if self.average == "pairs":
            num_positive = num_negative = num_positive + num_negative
        elif self.average == "active":
            num_positive = block.row_sums(self._is_active, where="positive")
            num_negative = active
        return _ratio(block, pull, num_positive) + _ratio(block, push, num_negative)

    def _is_active(self, tile: Tile) -> Tensor:
        # Equal points have a distance of just above zero, so that its root has a gradient.
        apart = tile.squared_distance > SMALLEST_SQUARED_DISTANCE
        return (apart & (tile.distance > self.positive_margin)).to(tile.similarity.dtype)

    def _excess(self, tile: Tile) -> Tensor:
        excess = (tile.distance - self.positive_margin).relu()
        return excess.square() if self.squared else excess


def _ratio(block: SimilarityBlock, sums: Tensor, counts: Tensor) -> Tensor:
    return block.total(sums, of="rows") / block.total(counts.detach(), of="rows").clamp_min(1)
