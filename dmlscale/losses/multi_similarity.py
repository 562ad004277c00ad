"""Multi-similarity: pairs weighted by three kinds of similarity, after mining the informative ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, threshold_

from dmlscale.losses import LOSSES, PairLoss
from dmlscale.losses.block import SimilarityBlock, Tile, softplus
from dmlscale.losses.hyper_parameters import require_not_negative, require_positive
from dmlscale.losses.scores import NamedScore, ScaledSimilarity
from dmlscale.losses.search_space import LogUniform, SearchSpace, Uniform


@dataclass(frozen=True)
class AboveThreshold(NamedScore):
    """``scale * (similarity - base)`` where ``scale * similarity`` exceeds the row's threshold, else -inf.

    Args:
        scale: dimensionless multiplier of the similarity.
        base: in units of similarity.
        absorbed_scale: what the rows carry already.
    """

    scale: float
    base: float
    absorbed_scale: float = 1.0

    symmetric: ClassVar[bool] = False

    def absorbed(self) -> tuple[float, AboveThreshold]:
        """See `NamedScore`."""
        return self.scale / self.absorbed_scale, replace(self, absorbed_scale=self.scale)

    def __call__(self, tile: Tile) -> Tensor:
        """The scores of a tile -> (r, c)."""
        scaled = tile.similarity * (self.scale / self.absorbed_scale)
        return (scaled - self.scale * self.base).masked_fill(scaled <= tile.rows[0], -torch.inf)

    def minus(self, tile: Tile, offset: Tensor | float) -> Tensor:
        """``score - offset`` -> (r, c); a threshold is vectorised where a mask is not."""
        excess = threshold_(tile.similarity.sub_(tile.rows[0]), 0.0, -torch.inf)
        return excess.add_(tile.rows[0] - self.scale * self.base - offset)

    def range_on_sphere(self) -> tuple[float, float]:
        """Smallest and largest value for unit rows and columns."""
        return self.scale * (-1 - self.base), self.scale * (1 - self.base)


@LOSSES.register("multi_similarity")
@dataclass(frozen=True)
class MultiSimilarity(PairLoss):
    """Multi-similarity loss with its miner (Wang et al. 2019, "Multi-Similarity Loss", eq. 11-15).

    Formula:
        A positive stays if ``s_ap < max_n s_an + miner_margin``, a negative if ``s_an > min_p s_ap - miner_margin``;
        ``1/B sum_a [ 1/positive_scale log(1 + sum_p exp(-positive_scale (s_ap - base)))
        + 1/negative_scale log(1 + sum_n exp(negative_scale (s_an - base))) ]`` over what stays; anchors that keep
        nothing count as 0. B is the number of all samples of the global batch.
        (pytorch-metric-learning gives 0 where one positive and one negative pair remain in the whole batch.)

    Block: pairs (B, B); embeddings are divided by their length.

    Args:
        positive_scale: dimensionless multiplier (the paper's alpha).
        negative_scale: dimensionless multiplier (the paper's beta).
        base: in units of cosine (the paper's lambda).
        miner_margin: in units of cosine (the paper's epsilon); None keeps all pairs.

    Raises:
        ValueError: a scale is not positive, or miner_margin is negative.
    """

    positive_scale: float = 2.0
    negative_scale: float = 50.0
    base: float = 0.5
    miner_margin: float | None = 0.1

    paper: ClassVar[str] = (
        "Wang et al. 2019, Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning"
    )
    divided_by: ClassVar[str] = "all samples, also those that keep no pair"
    # Centers: the paper's 50, 0.5 and 0.1, with which the optima of Musgrave et al. 2020 agree (50.6, 0.56). Theirs of
    # positive_scale is 0.01, the paper's 2: the range spans both.
    search_space: ClassVar[SearchSpace] = {
        "positive_scale": LogUniform(0.005, 4.0),
        "negative_scale": LogUniform(20.0, 125.0),
        "base": Uniform(0.2, 0.8),
        "miner_margin": Uniform(0.0, 0.2),
    }

    def __post_init__(self) -> None:
        require_positive(self, "multi_similarity", "positive_scale", "negative_scale")
        if self.miner_margin is not None:
            require_not_negative(self, "multi_similarity", "miner_margin")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        positives, negatives = self._all(block) if self.miner_margin is None else self._mined(block, self.miner_margin)
        pull = softplus(positives) / self.positive_scale
        push = softplus(negatives) / self.negative_scale
        return block.mean(pull + push, of="rows")

    def _attract(self, tile: Tile) -> Tensor:
        return -self.positive_scale * (tile.similarity - self.base)

    def _all(self, block: SimilarityBlock) -> tuple[Tensor, Tensor]:
        repel = ScaledSimilarity(self.negative_scale, -self.negative_scale * self.base)
        positives = block.logsumexp(self._attract, over="columns", where="positive")
        return positives, block.logsumexp(repel, over="columns", where="negative")

    def _mined(self, block: SimilarityBlock, miner_margin: float) -> tuple[Tensor, Tensor]:
        similarity = ScaledSimilarity(1.0)
        with torch.no_grad():
            lowest = block.minimum(similarity, where="positive")
            has_positive = block.count(over="columns", where="positive") > 0
            # No cosine is above 2: an anchor without positives keeps nothing.
            limit = torch.where(has_positive, lowest - miner_margin, 2.0)
        repel = AboveThreshold(self.negative_scale, self.base)
        negatives, highest = block.logsumexp_and_maximum(repel, where="negative", rows=(self.negative_scale * limit,))
        ceiling = highest / self.negative_scale + self.base + miner_margin  # -inf where no negative stayed

        def hard_positive(tile: Tile) -> Tensor:
            return self._attract(tile).masked_fill(tile.similarity >= tile.rows[0], -torch.inf)

        return block.logsumexp(hard_positive, over="columns", where="positive", rows=(ceiling,)), negatives
