"""Triplet margin loss with mining over the global batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dmlscale.losses import LOSSES, PairLoss
from dmlscale.losses.block import (
    SMALLEST_SQUARED_DISTANCE,
    RowTile,
    Selection,
    SimilarityBlock,
    Tile,
    softplus,
)
from dmlscale.losses.hyper_parameters import require_choice, require_not_negative
from dmlscale.losses.mining import distance_weighted, random_negative, semi_hard
from dmlscale.losses.search_space import Choice, LogUniform, SearchSpace

ONE_NEGATIVE_PER_PAIR: dict[str, Callable[[RowTile], Selection]] = {
    "semi_hard": semi_hard,
    "distance_weighted": distance_weighted,
    "random": random_negative,
}


@LOSSES.register("triplet")
@dataclass(frozen=True)
class Triplet(PairLoss):
    """Triplet loss: ``h(D(anchor, positive) - D(anchor, negative))`` over mined triplets, ``h(u) = relu(u + margin)``.

    Formula:
        ``mining`` says which triplets of the global batch count; a = anchor, p = positive, n = negative:
        "semi_hard" (Schroff et al. 2015, FaceNet, section 3.2, the selection rule of TensorFlow's
        ``triplet_semihard_loss``): for every (a, p) the nearest n that is farther than p, or the farthest if there is
        none; "all_semi_hard": every triplet with ``D_ap < D_an < D_ap + margin`` (pytorch-metric-learning's
        "semihard" miner); "all": every triplet; "batch_hard" (Hermans et al. 2017, eq. 5): for every a the farthest
        p and the nearest n; "all_positives_hardest_negative": for every (a, p) the nearest n of a;
        "distance_weighted" (Wu et al. 2017): for every (a, p) one n drawn with a weight that evens out distances;
        "random": for every (a, p) any n. Draws depend on seed, step and the identities of a and p alone.
        "all" averages over the chosen triplets, "active" over those whose term is positive (Hermans et al.'s "batch
        all != 0"): once most triplets are easy, the plain mean of "all" mining fades away.

    Block: pairs (B, B).

    Args:
        mining: which triplets of the global batch count.
        margin: in units of D.
        soft_margin: ``h(u) = log(1 + exp(u))`` (Hermans et al. 2017, section 3.2); the margin then only bounds what
            "all_semi_hard" takes.
        average: what the sum is divided by.
        normalize: divide embeddings by their length; None takes the paper's choice (batch_hard: no; others: yes).
        squared: D is the squared Euclidean distance; None takes the paper's choice (batch_hard: no; others: yes).

    Raises:
        ValueError: margin is negative, mining or average is unknown, or distances are weighted off the sphere.
    """

    mining: Literal[
        "semi_hard",
        "all_semi_hard",
        "all",
        "batch_hard",
        "all_positives_hardest_negative",
        "distance_weighted",
        "random",
    ] = "semi_hard"
    margin: float = 0.2
    soft_margin: bool = False
    average: Literal["all", "active"] = "all"
    normalize: bool | None = None
    squared: bool | None = None

    paper: ClassVar[str] = "Schroff et al. 2015, FaceNet: A Unified Embedding for Face Recognition and Clustering"
    divided_by: ClassVar[str] = (
        "the chosen triplets (average='all'; with one negative per pair, the positive pairs whose anchor "
        "has a negative), or those with a term above zero ('active')"
    )
    # The center lies between FaceNet's 0.2 and the optima of Musgrave et al. 2020, 0.05 to 0.12. Two ways of mining are
    # left out: random is a baseline, and the hardest negative for all positives did worst in our study.
    search_space: ClassVar[SearchSpace] = {
        "mining": Choice(("semi_hard", "all_semi_hard", "all", "batch_hard", "distance_weighted")),
        "margin": LogUniform(0.02, 1.0),
        "average": Choice(("all", "active")),
    }

    def __post_init__(self) -> None:
        require_not_negative(self, "triplet", "margin")
        choices = (*ONE_NEGATIVE_PER_PAIR, "all_semi_hard", "all", "batch_hard", "all_positives_hardest_negative")
        require_choice(self, "triplet", "mining", *choices)
        require_choice(self, "triplet", "average", "all", "active")
        if self.mining == "distance_weighted" and not self.on_sphere:
            raise ValueError("triplet: mining='distance_weighted' is about unit vectors; leave normalize on")

    @property
    def on_sphere(self) -> bool:
        """Whether the embeddings are divided by their length before the block is made."""
        return self.mining != "batch_hard" if self.normalize is None else self.normalize

    @property
    def uses_squared_distance(self) -> bool:
        """Whether D is the squared Euclidean distance."""
        return self.mining != "batch_hard" if self.squared is None else self.squared

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        if self.mining in ONE_NEGATIVE_PER_PAIR:
            sums, counts = self._one_negative(block, ONE_NEGATIVE_PER_PAIR[self.mining])
        elif self.mining == "batch_hard":
            sums, counts = self._batch_hard(block)
        elif self.mining == "all_positives_hardest_negative":
            sums, counts = self._hardest_negative(block)
        else:
            sums, counts = self._every_triplet(block)
        return block.total(sums, of="rows") / block.total(counts.detach(), of="rows").clamp_min(1)

    def _one_negative(self, block: SimilarityBlock, select: Callable[[RowTile], Selection]) -> tuple[Tensor, Tensor]:
        def value(to_positive: Tensor, to_negative: Tensor) -> Tensor:
            if not self.uses_squared_distance:
                to_positive, to_negative = _root(to_positive), _root(to_negative)
            return self._term(to_positive - to_negative)

        def is_active(to_positive: Tensor, to_negative: Tensor) -> Tensor:
            return (value(to_positive, to_negative) > 0).to(to_positive.dtype)

        sums = block.mined(select, value)
        if self.average == "active":
            with torch.no_grad():
                return sums, block.mined(select, is_active)
        return sums, self._pairs_with_negative(block)

    def _batch_hard(self, block: SimilarityBlock) -> tuple[Tensor, Tensor]:
        farthest_positive = block.maximum(self._distance, where="positive")
        nearest_negative = block.minimum(self._distance, where="negative")
        has_both = self._pairs_with_negative(block) > 0
        term = torch.where(has_both, self._term(farthest_positive - nearest_negative), 0.0)
        return term, term > 0 if self.average == "active" else has_both

    def _hardest_negative(self, block: SimilarityBlock) -> tuple[Tensor, Tensor]:
        nearest = block.minimum(self._distance, where="negative")
        pairs = self._pairs_with_negative(block)

        def term(tile: Tile) -> Tensor:
            return self._term(self._distance(tile) - tile.rows[0])

        sums = block.row_sums(term, where="positive", rows=(nearest,))
        counts = pairs
        if self.average == "active":
            counts = block.row_sums(lambda tile: (term(tile) > 0).to(sums.dtype), where="positive", rows=(nearest,))
        return torch.where(pairs > 0, sums, 0.0), torch.where(pairs > 0, counts, 0.0)

    def _every_triplet(self, block: SimilarityBlock) -> tuple[Tensor, Tensor]:
        squared, valid = block.positive_distances()
        to_positive = squared if self.uses_squared_distance else _root(squared)
        thresholds = (to_positive + self.margin).masked_fill(~valid, -torch.inf)
        lower = to_positive.detach() if self.mining == "all_semi_hard" else None
        if self.soft_margin:
            return self._every_soft_triplet(block, to_positive, valid, thresholds)
        sums, active = block.hinge_sums(thresholds, squared=self.uses_squared_distance, above=lower)
        if self.average == "active" or self.mining == "all_semi_hard":  # the semi-hard are the active ones among theirs
            return sums, active
        num_negative = block.count(over="columns", where="negative")
        return sums, block.count(over="columns", where="positive") * num_negative

    def _every_soft_triplet(
        self, block: SimilarityBlock, to_positive: Tensor, valid: Tensor, thresholds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One sweep over the matrix per place among the positives: softplus has no count for a gradient."""
        sums = to_positive.new_zeros(len(to_positive))
        counts = torch.zeros_like(sums)
        semi_hard_only = self.mining == "all_semi_hard"

        def chosen(tile: Tile) -> Tensor:
            distance = self._distance(tile)
            inside = (distance > tile.rows[0]) & (distance < tile.rows[1])
            return inside.to(distance.dtype) if semi_hard_only else torch.ones_like(distance)

        def term(tile: Tile) -> Tensor:
            return softplus(tile.rows[0] - self._distance(tile)) * chosen(tile)

        for j in range(to_positive.shape[1]):
            rows = (to_positive[:, j], thresholds[:, j].detach())
            here = valid[:, j]
            sums = sums + torch.where(here, block.row_sums(term, where="negative", rows=rows), 0.0)
            counts = counts + torch.where(here, block.row_sums(chosen, where="negative", rows=rows).detach(), 0.0)
        return sums, counts

    def _term(self, excess: Tensor) -> Tensor:
        return softplus(excess) if self.soft_margin else (excess + self.margin).relu()

    def _distance(self, tile: Tile) -> Tensor:
        return tile.squared_distance if self.uses_squared_distance else tile.distance

    def _pairs_with_negative(self, block: SimilarityBlock) -> Tensor:
        has_negative = block.count(over="columns", where="negative") > 0
        return block.count(over="columns", where="positive") * has_negative


def _root(squared_distance: Tensor) -> Tensor:
    return squared_distance.clamp_min(SMALLEST_SQUARED_DISTANCE).sqrt()
