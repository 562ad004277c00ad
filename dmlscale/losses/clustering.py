"""Clustering: the classes should be the best clustering of the batch around medoids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, PairLoss
from dmlscale.losses.block import SMALLEST_SQUARED_DISTANCE, RowTile, Selection, SimilarityBlock
from dmlscale.losses.facility_location import search_medoids
from dmlscale.losses.hyper_parameters import require_not_negative
from dmlscale.losses.search_space import LogUniform, SearchSpace


@LOSSES.register("clustering")
@dataclass(frozen=True)
class Clustering(PairLoss):
    """Structured clustering loss by facility location (Song et al. 2017, eq. 5-9, algorithms 1 and 2).

    Formula:
        ``relu( max_S [ F(S) + margin (1 - NMI(g(S), y)) ] - F~(y) )`` with ``F(S) = -sum_i min_{j in S} |f_i - f_j|``,
        g(S) the nearest medoid of each sample, ``F~(y) = sum_k max_{j in k} -sum_{i in k} |f_i - f_j|`` and |S| the
        number of classes in the global batch. The maximum is searched greedily, then refined one medoid at a time
        (`facility_location.search_medoids`): it is a lower bound of the true one. Both sums run over the batch, as
        in the paper, so the loss grows with it. (The paper lets its margin factor decay over training; here it is
        constant. TensorFlow's refinement scores a medoid by its own cluster only, ours by the whole objective.)

    Block: pairs (B, B). The search looks at the whole batch on every rank, O(C B^2) time and some
        ten B x B matrices of memory: keep B below a few thousand. The gradient is that of two distances per sample.

    Args:
        margin: weight of 1 - NMI (the paper's gamma).
        refinements: sweeps of local search over all medoids.

    Raises:
        ValueError: a value is negative.
    """

    margin: float = 1.0
    refinements: int = 5

    paper: ClassVar[str] = "Song et al. 2017, Deep Metric Learning via Facility Location"
    divided_by: ClassVar[str] = "nothing: sums over the batch, as in the paper"
    sharded: ClassVar[str] = "rows of B x B; every worker searches the whole batch"
    # Center: 1, where the paper's factor starts before it decays. More refinements cost time and are not tuned.
    search_space: ClassVar[SearchSpace] = {"margin": LogUniform(0.1, 10.0)}

    def __post_init__(self) -> None:
        require_not_negative(self, "clustering", "margin", "refinements")

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        embeddings, labels = block.everyone()
        found = search_medoids(embeddings, labels, margin=self.margin, refinements=self.refinements)

        def nearest(tile: RowTile) -> Selection:
            squared = tile.squared_distance[:, found.medoids]
            return _one_column(found.medoids[squared.argmin(1)])

        def own_medoid(tile: RowTile) -> Selection:
            is_other = torch.ones_like(tile.squared_distance)
            tile.fill_class(is_other, 0.0)
            # Own class first: its medoid is the only medoid among columns of the row's class.
            return _one_column(found.own_medoids[is_other[:, found.own_medoids].argmin(1)])

        if not len(labels):
            return block.total(block.count(over="columns", where="positive"), of="rows")
        score = -block.total(block.mined(nearest, _distance), of="rows")
        wanted = -block.total(block.mined(own_medoid, _distance), of="rows")
        return (score + self.margin * (1 - found.nmi) - wanted).relu()


def _one_column(column: Tensor) -> Selection:
    return Selection((column[:, None],), torch.ones_like(column[:, None], dtype=torch.bool))


def _distance(squared: Tensor) -> Tensor:
    # A medoid has the distance zero to itself, with gradient zero; the clamp's root would leave 1e-6.
    return torch.where(squared > SMALLEST_SQUARED_DISTANCE, squared, 1.0).sqrt() * (squared > SMALLEST_SQUARED_DISTANCE)
