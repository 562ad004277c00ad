"""Lifted structure: every positive pair against all negatives of both its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, PairLoss
from dmlscale.losses.block import LOG_OF_NOTHING, SimilarityBlock, Tile
from dmlscale.losses.hyper_parameters import require_choice, require_not_negative
from dmlscale.losses.scores import MarginMinusDistance
from dmlscale.losses.search_space import Choice, LogUniform, SearchSpace


def _distance(tile: Tile) -> Tensor:
    return tile.distance


def _squared_hinge(tile: Tile) -> Tensor:
    negatives = torch.logaddexp(tile.rows[0], tile.columns[0])
    return (negatives + tile.distance).relu().square()


def _squared_hinge_of_hardest(tile: Tile) -> Tensor:
    negatives = torch.maximum(tile.rows[0], tile.columns[0])
    return (negatives + tile.distance).relu().square()


@LOSSES.register("lifted_structure")
@dataclass(frozen=True)
class LiftedStructure(PairLoss):
    """Lifted structured feature embedding (Song et al. 2016), smooth, hard, and per anchor.

    Formula:
        "smooth" (eq. 4): ``J_ij = log( sum_{k not of y_i} exp(margin - D_ik) + sum_{l not of y_j} exp(margin - D_jl) )
        + D_ij``; "hard" (eq. 3): ``J_ij = max( max_k margin - D_ik, max_l margin - D_jl ) + D_ij``; both
        ``sum_{positive pairs} relu(J_ij)^2 / (2 |P|)`` with D the Euclidean, un-squared distance and |P| the number of
        unordered positive pairs of the global batch. J is evaluated from one number per row, so the cost is O(B^2),
        not pairs x negatives. "per_anchor" (the generalised form, Hermans et al. 2017, eq. 6):
        ``mean_a relu( log sum_p exp(D_ap) + log sum_n exp(margin - D_an) )`` over anchors with both kinds of pairs
        (pytorch-metric-learning's mean is over all anchors).

    Block: pairs (B, B). The papers do not normalise the embeddings.

    Args:
        form: which of the three.
        margin: in units of distance (the paper's alpha).
        normalize: divide the embeddings by their length first; a departure from the paper.

    Raises:
        ValueError: margin is negative, or form is unknown.
    """

    form: Literal["smooth", "hard", "per_anchor"] = "smooth"
    margin: float = 1.0
    normalize: bool = False

    paper: ClassVar[str] = "Song et al. 2016, Deep Metric Learning via Lifted Structured Feature Embedding"
    divided_by: ClassVar[str] = (
        "2 |P|, P the unordered positive pairs; per anchor: the anchors with both kinds of pairs"
    )
    # Center: the paper's margin of 1.
    search_space: ClassVar[SearchSpace] = {
        "form": Choice(("smooth", "hard", "per_anchor")),
        "margin": LogUniform(0.5, 2.0),
    }

    def __post_init__(self) -> None:
        require_not_negative(self, "lifted_structure", "margin")
        require_choice(self, "lifted_structure", "form", "smooth", "hard", "per_anchor")

    @property
    def on_sphere(self) -> bool:
        """Whether the embeddings are divided by their length before the block is made."""
        return self.normalize

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        if self.form == "per_anchor":
            return self._per_anchor(block)
        if self.form == "smooth":
            negatives = block.logsumexp(MarginMinusDistance(self.margin), over="columns", where="negative")
            score = _squared_hinge
        else:
            nearest = block.minimum(_distance, where="negative")
            has_negative = block.count(over="columns", where="negative") > 0
            negatives = torch.where(has_negative, self.margin - nearest, LOG_OF_NOTHING)
            score = _squared_hinge_of_hardest
        pairs = block.sum(score, where="positive", rows=(negatives,), columns=(block.to_columns(negatives),))
        # Every unordered pair stands in the matrix twice, in the sum as in the count.
        ordered_pairs = block.total(block.count(over="columns", where="positive"), of="rows")
        return pairs / (2 * ordered_pairs.clamp_min(1))

    def _per_anchor(self, block: SimilarityBlock) -> Tensor:
        negatives = block.logsumexp(MarginMinusDistance(self.margin), over="columns", where="negative")
        positives = block.logsumexp(_distance, over="columns", where="positive")
        has_both = (block.count(over="columns", where="positive") > 0) & (
            block.count(over="columns", where="negative") > 0
        )
        return block.mean(torch.where(has_both, positives + negatives, 0.0).relu(), of="rows", where=has_both)
