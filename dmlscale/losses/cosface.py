"""CosFace and AM-softmax: a margin on the cosine of the own class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss
from dmlscale.losses.block import SimilarityBlock, softplus
from dmlscale.losses.hyper_parameters import require_not_negative, require_positive
from dmlscale.losses.scores import ScaledSimilarity
from dmlscale.losses.search_space import LogUniform, SearchSpace, Uniform


@LOSSES.register("cosface")
@dataclass(frozen=True)
class CosFace(ClassLoss):
    """Large margin cosine loss (Wang et al. 2018, "CosFace", eq. 4).

    Formula:
        ``mean_i( log( exp(scale (cos(x_i, p_y) - margin)) + sum_{c != y} exp(scale cos(x_i, p_c)) )
        - scale (cos(x_i, p_y) - margin) )``.

    Block: classes (B, C); samples and proxies are divided by their length.

    Args:
        margin: in units of cosine (the paper's m).
        scale: dimensionless multiplier of the cosine (the paper's s).

    Raises:
        ValueError: scale is not positive, or margin is negative.
    """

    margin: float = 0.35
    scale: float = 64.0

    paper: ClassVar[str] = "Wang et al. 2018, CosFace: Large Margin Cosine Loss for Deep Face Recognition"
    # Centers lie between the paper's 0.35 and 64 and the optima of Musgrave et al. 2020: 0.34 to 0.62, and 100 to 162.
    search_space: ClassVar[SearchSpace] = {
        "margin": Uniform(0.1, 0.8),
        "scale": LogUniform(32.0, 256.0),
    }

    def __post_init__(self) -> None:
        require_positive(self, type(self).__name__.lower(), "scale")
        require_not_negative(self, type(self).__name__.lower(), "margin")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        logits = ScaledSimilarity(self.scale)
        # The margin touches the target alone, which is left out of the sum before it is formed.
        others = block.logsumexp(logits, over="columns", where="negative")
        own = block.target(ScaledSimilarity(self.scale, -self.scale * self.margin))
        return block.mean(softplus(others - own), of="rows")


@LOSSES.register("am_softmax")
@dataclass(frozen=True)
class AmSoftmax(CosFace):
    """Additive margin softmax (Wang et al. 2018, "Additive Margin Softmax for Face Verification", eq. 6).

    Formula:
        that of `CosFace`, published in the same year, with another default scale.

    Block: classes (B, C); samples and proxies are divided by their length.

    Args:
        margin: in units of cosine (the paper's m).
        scale: dimensionless multiplier of the cosine (the paper's s).

    Raises:
        ValueError: scale is not positive, or margin is negative.
    """

    scale: float = 30.0

    paper: ClassVar[str] = "Wang et al. 2018, Additive Margin Softmax for Face Verification"
    # Centers: the paper's 0.35 and 30.
    search_space: ClassVar[SearchSpace] = {
        "margin": Uniform(0.05, 0.65),
        "scale": LogUniform(15.0, 60.0),
    }
