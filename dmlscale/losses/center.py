"""Center loss: samples are pulled to the center of their class, centers follow the samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from dmlscale.losses import LOSSES, ClassLoss
from dmlscale.losses.block import SimilarityBlock, Tile
from dmlscale.losses.hyper_parameters import require_choice, require_not_negative
from dmlscale.losses.search_space import SearchSpace, Uniform


def half_squared_distance(tile: Tile) -> Tensor:
    """``D = |x - c|^2 / 2``, of the center and the triplet-center loss."""
    return tile.squared_distance / 2


@LOSSES.register("center")
@dataclass(frozen=True)
class Center(ClassLoss):
    """Center loss (Wen et al. 2016, eq. 2-4), to be joined with a softmax: alone it lets everything collapse.

    Formula:
        ``1/2 sum_i |x_i - c_{y_i}|^2``; "mean" divides by the number of samples, as the official Caffe layer does
        (the paper's eq. 2 has the plain sum). ``update="alpha"`` is the paper's own rule for the centers, after every
        step, whatever the loss's weight: ``c_j -= alpha sum_i [y_i = j] (c_j - x_i) / (1 + n_j)``, n_j the number
        of samples of the class in the global batch. ``update="gradient"`` gives them the plain gradient instead.
        ``repulsion`` adds, which the paper does not have, ``repulsion * mean_j relu(repulsion_margin - min_{k != j}
        1/2 |c_j - c_k|^2)`` over the classes j of the batch: a center keeps its distance from the nearest other one.

    Block: classes (B, C); neither side is normalised.

    Args:
        update: how centers move.
        alpha: rate of the paper's rule.
        average: of the terms over the batch.
        repulsion: weight of the push between centers; 0 leaves it out.
        repulsion_margin: in units of half a squared distance.

    Raises:
        ValueError: a value out of range.
    """

    update: Literal["alpha", "gradient"] = "alpha"
    alpha: float = 0.5
    average: Literal["mean", "sum"] = "mean"
    repulsion: float = 0.0
    repulsion_margin: float = 5.0

    paper: ClassVar[str] = "Wen et al. 2016, A Discriminative Feature Learning Approach for Deep Face Recognition"
    divided_by: ClassVar[str] = (
        "the samples (average='mean'), or nothing ('sum'); the repulsion by the classes in the batch"
    )
    sharded: ClassVar[str] = "centers"
    on_sphere = False
    rows_are_points: ClassVar[bool] = True
    # Center: the paper's 0.5. The repulsion is not the paper's and stays off; what matters as much is the weight of
    # the loss in the sum (0.003 in the paper), a key of the config.
    search_space: ClassVar[SearchSpace] = {"alpha": Uniform(0.1, 0.9)}

    def __post_init__(self) -> None:
        require_choice(self, "center", "update", "alpha", "gradient")
        require_choice(self, "center", "average", "mean", "sum")
        require_not_negative(self, "center", "repulsion", "repulsion_margin")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"center: alpha must be in (0, 1], got {self.alpha}")

    @property
    def steps_bank(self) -> bool:
        """Whether the centers move by the paper's rule."""
        return self.update == "alpha"

    @property
    def bank_has_gradient(self) -> bool:
        """Whether the centers have a gradient."""
        return self.update == "gradient" or self.repulsion > 0

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""
        own = block.target(half_squared_distance, fixed_columns=self.update == "alpha")
        loss = block.mean(own, of="rows") if self.average == "mean" else block.total(own, of="rows")
        return loss + self.repulsion * self._crowding(block) if self.repulsion else loss

    def _crowding(self, block: SimilarityBlock) -> Tensor:
        if block.num_columns < 2:
            return block.total(block.count(over="columns", where="negative"), of="rows") * 0.0
        centers = block.between_centers()
        nearest = centers.minimum(half_squared_distance, where="negative")
        return centers.mean((self.repulsion_margin - nearest).relu(), of="rows")

    def bank_step(self, rows: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """The paper's rule (eq. 4); see `Loss.bank_step`."""
        return self.alpha * (sums - counts[:, None] * rows) / (1 + counts[:, None])
