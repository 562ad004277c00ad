"""ArcFace: a margin on the angle to the own class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss
from dmlscale.losses.block import SimilarityBlock, Tile, softplus
from dmlscale.losses.hyper_parameters import require_positive
from dmlscale.losses.scores import ScaledSimilarity
from dmlscale.losses.search_space import LogUniform, SearchSpace, Uniform

# The angle's slope is infinite where sample and proxy coincide; below this squared sine it is taken as constant.
SMALLEST_SQUARED_SINE = 1e-10


@LOSSES.register("arcface")
@dataclass(frozen=True)
class ArcFace(ClassLoss):
    """Additive angular margin loss (Deng et al. 2019, "ArcFace", eq. 3), with the true gradient.

    Formula:
        ``mean_i CE(scale cos(theta_c + margin [c = y_i]))`` with theta the angle between sample and proxy; where
        ``theta + margin > pi`` the target is ``cos(theta) - margin sin(margin)``, so that it goes on falling (as in
        InsightFace and pytorch-metric-learning). InsightFace's own gradient is another: it takes d cos(theta +
        margin) / d cos(theta) as 1, which is 12 to 20 % off.

    Block: classes (B, C); samples and proxies are divided by their length.

    Args:
        margin: in radians (the paper's m; pytorch-metric-learning takes degrees).
        scale: dimensionless multiplier of the cosine (the paper's s).

    Raises:
        ValueError: scale is not positive, or margin is outside [0, pi).
    """

    margin: float = 0.5
    scale: float = 64.0

    paper: ClassVar[str] = "Deng et al. 2019, ArcFace: Additive Angular Margin Loss for Deep Face Recognition"
    # Centers: the paper's and InsightFace's 0.5 rad and 64; Roth et al. 2020 use a scale of 16 for retrieval.
    search_space: ClassVar[SearchSpace] = {
        "margin": Uniform(0.2, 0.8),
        "scale": LogUniform(16.0, 256.0),
    }

    def __post_init__(self) -> None:
        require_positive(self, "arcface", "scale")
        if not 0 <= self.margin < math.pi:
            raise ValueError(f"arcface: margin is an angle in [0, pi) radians, got {self.margin}")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        others = block.logsumexp(ScaledSimilarity(self.scale), over="columns", where="negative")
        return block.mean(softplus(others - block.target(self._target)), of="rows")

    def _target(self, tile: Tile) -> Tensor:
        cosine, squared = tile.similarity, tile.squared_distance
        # sin^2 = D^2 (1 - D^2 / 4): exact near zero, where 1 - cos^2 is rounding.
        sine = (squared * (1 - squared / 4)).clamp_min(SMALLEST_SQUARED_SINE).sqrt()
        moved = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosine - self.margin * math.sin(self.margin)
        return self.scale * torch.where(cosine > -math.cos(self.margin), moved, beyond)
