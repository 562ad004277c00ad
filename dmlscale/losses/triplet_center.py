"""Triplet-center: closer to the own center than to the nearest other one, by a margin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss
from dmlscale.losses.block import SimilarityBlock
from dmlscale.losses.center import half_squared_distance
from dmlscale.losses.hyper_parameters import require_choice, require_not_negative
from dmlscale.losses.search_space import LogUniform, SearchSpace


@LOSSES.register("triplet_center")
@dataclass(frozen=True)
class TripletCenter(ClassLoss):
    """Triplet-center loss (He et al. 2018, "Triplet-Center Loss for Multi-View 3D Object Retrieval", eq. 5).

    Formula:
        ``sum_i relu( D(x_i, c_{y_i}) + margin - min_{j != y_i} D(x_i, c_j) )`` with ``D = 1/2 |x - c|^2`` and the
        minimum over *all* other classes; "mean" divides by the number of samples, as the author's code does.
        Centers learn by the plain gradient; the paper's eq. 7 divides each center's share by 1 + its number of
        samples. (The author's SHREC'18 code is another loss: the root of the distance, on class scores, against
        the classes of the batch only.)

    Block: classes (B, C); neither side is normalised, hence the margin of 5.

    Args:
        margin: in units of half a squared distance.
        average: of the terms over the batch.

    Raises:
        ValueError: margin is negative, or average is unknown.
    """

    margin: float = 5.0
    average: Literal["mean", "sum"] = "mean"

    paper: ClassVar[str] = "He et al. 2018, Triplet-Center Loss for Multi-View 3D Object Retrieval"
    divided_by: ClassVar[str] = "the samples (average='mean'), or nothing ('sum')"
    sharded: ClassVar[str] = "centers and their optimizer state"
    on_sphere = False
    rows_are_points: ClassVar[bool] = True
    # Center: the paper's 5; the authors' scripts for SHREC 2018 use 1.
    search_space: ClassVar[SearchSpace] = {"margin": LogUniform(1.0, 25.0)}

    def __post_init__(self) -> None:
        require_not_negative(self, "triplet_center", "margin")
        require_choice(self, "triplet_center", "average", "mean", "sum")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        own = block.target(half_squared_distance)
        nearest = block.minimum(half_squared_distance, where="negative")
        has_other = block.count(over="columns", where="negative") > 0
        terms = torch.where(has_other, (own + self.margin - nearest).relu(), 0.0)
        return block.mean(terms, of="rows") if self.average == "mean" else block.total(terms, of="rows")
