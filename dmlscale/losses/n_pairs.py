"""N-pairs: one pair per class, every anchor against the positives of all other classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dmlscale.losses import LOSSES, PairLoss
from dmlscale.losses.block import SimilarityBlock, Tile, softplus
from dmlscale.losses.hyper_parameters import require_not_negative
from dmlscale.losses.scores import ScaledSimilarity
from dmlscale.losses.search_space import LogUniform, SearchSpace


def _similarity(tile: Tile) -> Tensor:
    return tile.similarity


@LOSSES.register("n_pairs")
@dataclass(frozen=True)
class NPairs(PairLoss):
    """Multi-class N-pair loss (Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective").

    Formula:
        ``mean_c log(1 + sum_{c' != c} exp(a_c . p_c' - a_c . p_c))`` with a_c the first and p_c the second sample of
        each class in the global batch (by identity; further samples are not used, so two per class are enough),
        ``+ l2_weight / 4 (mean |a_c|^2 + mean |p_c|^2)``. The mean is over the classes with a pair.
        (pytorch-metric-learning normalises by default and has no l2 term; its choice of pairs follows the order of
        the batch on each rank.)

    Block: pairs (B, B), of which only anchors x positives are computed. The paper does not normalise.

    Args:
        l2_weight: of the squared lengths, which keeps un-normalised embeddings from growing.

    Raises:
        ValueError: l2_weight is negative.
    """

    l2_weight: float = 0.002

    paper: ClassVar[str] = "Sohn 2016, Improved Deep Metric Learning with Multi-class N-pair Loss Objective"
    divided_by: ClassVar[str] = "the classes with a pair"
    # Center: TensorFlow's 0.002; Roth et al. 2020 take the paper's to be 0.02.
    search_space: ClassVar[SearchSpace] = {"l2_weight": LogUniform(2e-4, 2e-2)}
    on_sphere = False

    def __post_init__(self) -> None:
        require_not_negative(self, "n_pairs", "l2_weight")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        pairs = block.one_pair_per_class()
        others = pairs.logsumexp(ScaledSimilarity(1.0), over="columns", where="negative")
        own = pairs.row_sums(_similarity, where="positive")
        used = (block.place_in_class() < 2) & (block.count(over="columns", where="positive") > 0)
        # Anchors and positives are equally many: their mean is half the sum of the two means.
        length = 2 * block.mean(block.squared_lengths(), of="rows", where=used)
        return pairs.mean(softplus(others - own), of="rows") + self.l2_weight / 4 * length
