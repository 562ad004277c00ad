"""Circle loss: every similarity is weighted by how far it is from its optimum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss, PairLoss
from dmlscale.losses.block import LOG_OF_NOTHING, SimilarityBlock, Tile, softplus
from dmlscale.losses.hyper_parameters import require_not_negative, require_positive
from dmlscale.losses.scores import NamedScore
from dmlscale.losses.search_space import LogUniform, SearchSpace, Uniform


@dataclass(frozen=True)
class CircleRepulsion(NamedScore):
    """``scale * a * (s - margin)`` with the weight ``a = relu(s + margin)``, which gets no gradient.

    Args:
        scale: dimensionless multiplier.
        margin: in units of cosine.
        root: what the rows carry already: the square root of the scale, for the score is quadratic.
    """

    scale: float
    margin: float
    root: float = 1.0

    def absorbed(self) -> tuple[float, CircleRepulsion]:
        """See `NamedScore`."""
        root = self.scale**0.5
        return root / self.root, replace(self, root=root)

    def __call__(self, tile: Tile) -> Tensor:
        """The scores of a tile -> (r, c)."""
        rest, margin = self.scale / self.root**2, self.margin * self.root
        return rest * (tile.similarity.detach() + margin).relu() * (tile.similarity - margin)

    def minus(self, tile: Tile, offset: Tensor | float) -> Tensor:
        """``score - offset`` -> (r, c)."""
        rest, margin = self.scale / self.root**2, self.margin * self.root
        weight = torch.add(tile.similarity, margin).clamp_min_(0)
        tile.kept = weight if rest == 1 else weight.mul_(rest)
        return tile.similarity.sub_(margin).mul_(tile.kept).sub_(offset)

    def range_on_sphere(self) -> tuple[float, float]:
        """Smallest and largest value for unit rows and columns."""
        return -self.scale * self.margin**2, self.scale * (1 - self.margin**2)

    def pull_back_(self, tile: Tile, gradient: Tensor) -> Tensor:
        """Turns the gradient by the score into that by the similarity, in place."""
        assert tile.kept is not None
        return gradient.mul_(tile.kept)


@dataclass(frozen=True)
class _CircleOptions:
    """What both forms share: the positive side, and how the two sides meet."""

    margin: float
    scale: float

    def attract(self, tile: Tile) -> Tensor:
        weight = (1 + self.margin - tile.similarity.detach()).relu()
        return -self.scale * weight * (tile.similarity - (1 - self.margin))

    def meet(self, positives: Tensor, negatives: Tensor) -> Tensor:
        # The sum of two empty logs is no number that means anything: rows without either side count for nothing.
        both = (positives > LOG_OF_NOTHING / 2) & (negatives > LOG_OF_NOTHING / 2)
        return torch.where(both, softplus(torch.where(both, positives + negatives, 0.0)), 0.0)


@LOSSES.register("circle")
@dataclass(frozen=True)
class Circle(PairLoss):
    """Circle loss, pairwise form (Sun et al. 2020, "Circle Loss", eq. 6-8).

    Formula:
        for every anchor ``softplus( logsumexp_n(scale a_n (s_n - margin))
        + logsumexp_p(-scale a_p (s_p - (1 - margin))) )`` with ``a_p = relu(1 + margin - s_p)`` and
        ``a_n = relu(s_n + margin)``, which get no gradient; mean over the anchors with both kinds of pairs.
        (Some ports take one softplus over all pairs of the batch; the paper's is per anchor.)

    Block: pairs (B, B); embeddings are divided by their length.

    Args:
        margin: in units of cosine (the paper's m; 0.4 for fine-grained retrieval).
        scale: dimensionless multiplier (the paper's gamma; 80 for fine-grained retrieval).

    Raises:
        ValueError: scale is not positive, or margin is negative.
    """

    margin: float = 0.4
    scale: float = 80.0

    paper: ClassVar[str] = "Sun et al. 2020, Circle Loss: A Unified Perspective of Pair Similarity Optimization"
    divided_by: ClassVar[str] = "the anchors with both kinds of pairs"
    # Centers: the paper's 0.4 and 80 for fine-grained retrieval; faces take 0.25.
    search_space: ClassVar[SearchSpace] = {
        "margin": Uniform(0.1, 0.7),
        "scale": LogUniform(32.0, 200.0),
    }

    def __post_init__(self) -> None:
        require_positive(self, "circle", "scale")
        require_not_negative(self, "circle", "margin")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        options = _CircleOptions(self.margin, self.scale)
        positives = block.logsumexp(options.attract, over="columns", where="positive")
        negatives = block.logsumexp(CircleRepulsion(self.scale, self.margin), over="columns", where="negative")
        has_both = (block.count(over="columns", where="positive") > 0) & (
            block.count(over="columns", where="negative") > 0
        )
        return block.mean(options.meet(positives, negatives), of="rows", where=has_both)


@LOSSES.register("circle_proxy")
@dataclass(frozen=True)
class CircleProxy(ClassLoss):
    """Circle loss, class form: proxies take the place of the other samples (Sun et al. 2020, eq. 6-8).

    Formula:
        as `Circle`, with one positive, the sample's own proxy, and all other proxies as negatives; mean over samples.

    Block: classes (B, C); samples and proxies are divided by their length.

    Args:
        margin: in units of cosine (the paper's m; 0.25 for faces).
        scale: dimensionless multiplier (the paper's gamma; 256 for faces).

    Raises:
        ValueError: scale is not positive, or margin is negative.
    """

    margin: float = 0.25
    scale: float = 256.0

    paper: ClassVar[str] = Circle.paper
    # Centers: the paper's 0.25 and 256 for faces.
    search_space: ClassVar[SearchSpace] = {
        "margin": Uniform(0.05, 0.45),
        "scale": LogUniform(64.0, 1024.0),
    }

    def __post_init__(self) -> None:
        require_positive(self, "circle_proxy", "scale")
        require_not_negative(self, "circle_proxy", "margin")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        options = _CircleOptions(self.margin, self.scale)
        negatives = block.logsumexp(CircleRepulsion(self.scale, self.margin), over="columns", where="negative")
        return block.mean(options.meet(block.target(options.attract), negatives), of="rows")
