"""SoftTriple: several centers per class, softly assigned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss
from dmlscale.losses.block import SimilarityBlock, softplus
from dmlscale.losses.hyper_parameters import require_not_negative, require_positive
from dmlscale.losses.scores import ScaledSimilarity
from dmlscale.losses.search_space import Integer, LogUniform, SearchSpace


@LOSSES.register("soft_triple")
@dataclass(frozen=True)
class SoftTriple(ClassLoss):
    """SoftTriple loss with its center regulariser (Qian et al. 2019, eq. 8-10; idstcv/SoftTriple).

    Formula:
        ``S_ic = sum_k softmax_k(s_ick / assignment_temperature) s_ick`` with s_ick the cosine to center k of class c;
        ``mean_i CE(scale (S_i - margin onehot(y_i)), y_i)
        + regularizer_weight sum_c sum_{s<t} sqrt(2 + 1e-5 - 2 w_cs w_ct) / (C K (K - 1))``.

        (pytorch-metric-learning's regulariser has no 1e-5 under the root; the losses differ by 1e-6.)

    Block: classes (B, C) with K centers per class; samples and centers are divided by their length.
        The regulariser is C blocks of K x K, never the (CK, CK) matrix of the reference code.

    Args:
        centers_per_class: K.
        scale: dimensionless multiplier of the class similarity (the paper's lambda).
        assignment_temperature: softness of the choice among a class's centers (the paper's gamma = 0.1;
            the reference code stores its inverse).
        margin: in units of cosine (the paper's delta).
        regularizer_weight: the paper's tau; 0 or K = 1 switch the regulariser off.

    Raises:
        ValueError: a value out of range.
    """

    centers_per_class: int = 10
    scale: float = 20.0
    assignment_temperature: float = 0.1
    margin: float = 0.01
    regularizer_weight: float = 0.2

    paper: ClassVar[str] = "Qian et al. 2019, SoftTriple Loss: Deep Metric Learning Without Triplet Sampling"
    divided_by: ClassVar[str] = "the samples; its regulariser by C K (K - 1)"
    sharded: ClassVar[str] = "K centers per class and their optimizer state"
    # Centers: the paper's 10, 0.01 and 0.2. scale and assignment_temperature lie between the paper's 20 and 0.1 and the
    # optima of Musgrave et al. 2020: 18 to 100, and 1/59 to 1/19.
    search_space: ClassVar[SearchSpace] = {
        "centers_per_class": Integer(4, 25, log=True),
        "scale": LogUniform(8.0, 128.0),
        "assignment_temperature": LogUniform(0.0125, 0.2),
        "margin": LogUniform(0.001, 0.1),
        "regularizer_weight": LogUniform(0.02, 2.0),
    }

    def __post_init__(self) -> None:
        if self.centers_per_class < 1:
            raise ValueError(f"soft_triple: centers_per_class must be at least 1, got {self.centers_per_class}")
        require_positive(self, "soft_triple", "scale", "assignment_temperature")
        require_not_negative(self, "soft_triple", "margin", "regularizer_weight")

    @property
    def rows_per_class(self) -> int:
        """Rows in the class bank for each class."""
        return self.centers_per_class

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        classes = block.soft_assigned(self.assignment_temperature)
        logits = ScaledSimilarity(self.scale)
        others = classes.logsumexp(logits, over="columns", where="negative")
        own = classes.target(logits) - self.scale * self.margin
        loss = classes.mean(softplus(others - own), of="rows")
        if self.regularizer_weight > 0 and self.centers_per_class > 1:
            loss = loss + self.regularizer_weight * self._spread(block)
        return loss

    def _spread(self, block: SimilarityBlock) -> Tensor:
        """Mean distance between the centers of a class: zero where all K have merged."""
        K = self.centers_per_class  # noqa: N806 - the paper's letter
        upper = torch.triu_indices(K, K, offset=1)

        def distances(cosines: Tensor) -> Tensor:  # (classes, K, K) -> (classes,)
            pairs = cosines[:, upper[0], upper[1]]
            # 1e-5 keeps the gradient finite where two centers coincide, as in the reference code.
            return (2.0 + 1e-5 - 2.0 * pairs).clamp_min(1e-12).sqrt().sum(1)

        return block.center_similarities(distances) / (block.num_columns * K * (K - 1))

    def metrics(self, block: SimilarityBlock) -> dict[str, Tensor]:
        """Effective number of centers per class, mean over the classes: K where all are orthogonal, 1 where all merged.

        The participation ratio ``(sum of eigenvalues)^2 / sum of their squares = K^2 / |G|^2`` of the matrix G of
        cosines among a class's centers. (The paper counts the centers that have not merged, by a threshold.)
        """
        if self.centers_per_class == 1:
            return {}

        def effective(cosines: Tensor) -> Tensor:  # (classes, K, K) -> (classes,)
            return self.centers_per_class**2 / cosines.square().sum((1, 2))

        return {"effective_centers": block.center_similarities(effective) / block.num_columns}
