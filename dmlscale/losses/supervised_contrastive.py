"""Supervised contrastive: a softmax over the batch, averaged over the positives of each anchor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, PairLoss
from dmlscale.losses.block import SimilarityBlock, Tile
from dmlscale.losses.hyper_parameters import require_positive
from dmlscale.losses.scores import ScaledSimilarity
from dmlscale.losses.search_space import LogUniform, SearchSpace


@LOSSES.register("supervised_contrastive")
@dataclass(frozen=True)
class SupervisedContrastive(PairLoss):
    """Supervised contrastive loss, the form with the sum outside the logarithm (Khosla et al. 2020, eq. 2).

    Formula:
        ``mean_i 1/|P(i)| sum_p ( log sum_{a != i} exp(s_ia / temperature) - s_ip / temperature )`` over the anchors
        with a positive; the denominator holds positives and negatives. Times ``temperature / base_temperature`` if
        that is given, as the official code does (there 0.07 by default, so that only other temperatures show it).
        (pytorch-metric-learning gives 0 for a batch of one class; the formula does not.)

    Block: pairs (B, B); embeddings are divided by their length.

    Args:
        temperature: in units of cosine.
        base_temperature: of the factor; None leaves it out.

    Raises:
        ValueError: a temperature is not positive.
    """

    temperature: float = 0.07
    base_temperature: float | None = None

    paper: ClassVar[str] = "Khosla et al. 2020, Supervised Contrastive Learning"
    divided_by: ClassVar[str] = "|P(i)|, the anchor's positives, inside; the anchors with a positive outside"
    # Center: the official code's 0.07. base_temperature only multiplies the loss, as a learning rate does.
    search_space: ClassVar[SearchSpace] = {"temperature": LogUniform(0.02, 0.25)}

    def __post_init__(self) -> None:
        require_positive(self, "supervised_contrastive", "temperature")
        if self.base_temperature is not None:
            require_positive(self, "supervised_contrastive", "base_temperature")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        logits = ScaledSimilarity(1 / self.temperature)

        def positive_logit(tile: Tile) -> Tensor:
            return tile.similarity / self.temperature

        everyone = torch.logaddexp(
            block.logsumexp(positive_logit, over="columns", where="positive"),
            block.logsumexp(logits, over="columns", where="negative"),
        )
        num_positive = block.count(over="columns", where="positive")
        own = block.row_sums(positive_logit, where="positive") / num_positive.clamp_min(1)
        loss = block.mean(everyone - own, of="rows", where=num_positive > 0)
        return loss if self.base_temperature is None else loss * (self.temperature / self.base_temperature)
