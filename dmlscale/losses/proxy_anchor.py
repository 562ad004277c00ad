"""Proxy-Anchor: each proxy is an anchor that meets all samples of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss
from dmlscale.losses.block import SimilarityBlock, softplus
from dmlscale.losses.hyper_parameters import require_positive
from dmlscale.losses.scores import ScaledSimilarity
from dmlscale.losses.search_space import LogUniform, SearchSpace


@LOSSES.register("proxy_anchor")
@dataclass(frozen=True)
class ProxyAnchor(ClassLoss):
    """Proxy-Anchor loss (Kim et al. 2020, "Proxy Anchor Loss for Deep Metric Learning", eq. 4).

    Formula:
        ``1/|P+| sum_{p in P+} log(1 + sum_{x of p} exp(-scale (cos(x, p) - margin)))
        + 1/|P| sum_p log(1 + sum_{x not of p} exp(scale (cos(x, p) + margin)))``.
        P+ are the classes present in the *global* batch, P all classes. Both counts matter: leaving out 1/|P+|
        changes the weight of the positive term with the batch.

    Block: classes (B, C); rows are samples, columns proxies; both are divided by their length.

    Args:
        margin: in units of cosine.
        scale: dimensionless multiplier of the cosine (the paper's alpha).

    Raises:
        ValueError: scale is not positive, or margin is outside [0, 1].
    """

    margin: float = 0.1
    scale: float = 32.0

    paper: ClassVar[str] = "Kim et al. 2020, Proxy Anchor Loss for Deep Metric Learning"
    divided_by: ClassVar[str] = (
        "the positive term by |P+|, the classes in the batch; the negative term by all C classes"
    )
    # Centers: the paper's and its code's 0.1 and 32.
    search_space: ClassVar[SearchSpace] = {
        "margin": LogUniform(0.025, 0.4),
        "scale": LogUniform(8.0, 128.0),
    }

    def __post_init__(self) -> None:
        require_positive(self, "proxy_anchor", "scale")
        if not 0 <= self.margin <= 1:
            raise ValueError(f"proxy_anchor: margin is a cosine in [0, 1], got {self.margin}")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        attract = ScaledSimilarity(-self.scale, self.scale * self.margin)
        repel = ScaledSimilarity(self.scale, self.scale * self.margin)
        positives = block.logsumexp(attract, over="rows", where="positive")
        negatives = block.logsumexp(repel, over="rows", where="negative")
        present = block.count(over="rows", where="positive") > 0
        return block.mean(softplus(positives), of="columns", where=present) + block.mean(
            softplus(negatives), of="columns"
        )
