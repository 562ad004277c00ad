"""Normalised softmax: cross-entropy over scaled cosines with one proxy per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss
from dmlscale.losses.block import SimilarityBlock, softplus
from dmlscale.losses.hyper_parameters import require_positive
from dmlscale.losses.scores import ScaledSimilarity
from dmlscale.losses.search_space import LogUniform, SearchSpace


@LOSSES.register("norm_softmax")
@dataclass(frozen=True)
class NormSoftmax(ClassLoss):
    """Normalised softmax (Zhai & Wu 2019, "Classification is a Strong Baseline", eq. 3, without its LayerNorm).

    Formula:
        ``mean_i( log sum_c exp(s cos(x_i, p_c)) - s cos(x_i, p_{y_i}) )``, s = 1 / temperature.

    Block: classes (B, C); rows are samples, columns proxies; both are divided by their length.

    Args:
        scale: dimensionless multiplier of the cosine; the paper's 1 / 0.05.

    Raises:
        ValueError: scale is not positive.
    """

    scale: float = 20.0

    paper: ClassVar[str] = "Zhai & Wu 2019, Classification is a Strong Baseline for Deep Metric Learning"
    # The center lies between the paper's 20 and the optima of Musgrave et al. 2020, temperatures of 0.063 to 0.11.
    search_space: ClassVar[SearchSpace] = {"scale": LogUniform(5.0, 50.0)}

    def __post_init__(self) -> None:
        require_positive(self, "norm_softmax", "scale")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        logits = ScaledSimilarity(self.scale)
        # The target is left out before the sum: subtracting it afterwards cancels once the model has converged.
        others = block.logsumexp(logits, over="columns", where="negative")
        return block.mean(softplus(others - block.target(logits)), of="rows")
