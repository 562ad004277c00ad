"""Softmax: cross-entropy over plain dot products, the classifier that other losses are joined with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss
from dmlscale.losses.block import SimilarityBlock, softplus
from dmlscale.losses.scores import ScaledSimilarity


@LOSSES.register("softmax")
@dataclass(frozen=True)
class Softmax(ClassLoss):
    """Softmax cross-entropy over a linear layer without bias, e.g. as in Wen et al. 2016, eq. 1.

    Formula:
        ``mean_i( log sum_c exp(x_i . w_c) - x_i . w_{y_i} )``. (Wen's eq. 1 has a bias per class; retrieval looks at
        directions and distances, and later papers leave it out.)

    Block: classes (B, C); rows are samples, columns the classes' weights; neither is normalised.

    Args:
        none: it has no hyper-parameters.

    Raises:
        nothing.
    """

    paper: ClassVar[str] = (
        "Wen et al. 2016, A Discriminative Feature Learning Approach for Deep Face Recognition (eq. 1)"
    )
    sharded: ClassVar[str] = "class weights and their optimizer state"
    on_sphere = False

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        logits = ScaledSimilarity(1.0)
        # The target is left out before the sum: subtracting it afterwards cancels once the model has converged.
        others = block.logsumexp(logits, over="columns", where="negative")
        return block.mean(softplus(others - block.target(logits)), of="rows")
