"""A random part of the classes at each step, for banks too large to look at all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed import collectives
from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.class_block import ClassBlock, ClassRange
from dmlscale.distributed.gram import sum_of_centers
from dmlscale.distributed.world import World
from dmlscale.losses.block import Axis, BlockError, Score, Where
from dmlscale.losses.draws import Chance


@dataclass(frozen=True)
class ClassSampling:
    """Which classes a step looks at: those of the global batch, and each other one with probability ``rate``.

    A class is drawn by (seed, step, class id) alone, so the sample is the same at any number of ranks.

    Args:
        rate: in (0, 1].
        unbiased: weigh each drawn class by 1 / rate, so that a softmax's sum over absent classes is right on
            average (its logarithm is not, by a little). False is PartialFC (An et al. 2021), whose sum is too small.

    Raises:
        ValueError: rate is out of range.
    """

    rate: float
    unbiased: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"class_sampling rate must be in (0, 1], got {self.rate}")

    @property
    def weight(self) -> float:
        """How many classes a drawn one stands for."""
        return 1 / self.rate if self.unbiased else 1.0

    def drawn(self, class_ids: Tensor, chance: Chance) -> Tensor:
        """Which of the classes are drawn at this step -> (c,) bool."""
        return chance.uniform(class_ids) < self.rate


class SampledClassBlock(ClassBlock):
    """A class block that looks at the batch's own classes and at those drawn from the others.

    Log-sums over columns, targets and sums over centers make sense on a sample; the others are refused.

    Args:
        batch: see `ClassBlock`.
        weight: (c, K, d) this rank's bank; its gradient is sparse: the rows that were looked at.
        sampling: which classes to look at.
        chance: of this step.
        where: which classes the bank holds.
        world: the ranks.
        on_sphere: whether rows and columns have length one.
    """

    kind = "a class block with class sampling"

    def __init__(
        self,
        batch: LocalBatch,
        weight: Tensor,
        where: ClassRange,
        sampling: ClassSampling,
        chance: Chance,
        *,
        world: World,
        on_sphere: bool,
    ) -> None:
        self._gather(batch, where, weight.shape[1], world, on_sphere)
        self._sampling = sampling
        present = self._row_labels[self._start : self._stop].unique()
        drawn = sampling.drawn(torch.arange(where.start, where.stop, device=present.device), chance)
        drawn[present - where.start] = False
        absent = drawn.nonzero()[:, 0] + where.start
        proxies: Tensor = _TakeRows.apply(weight, torch.cat([present, absent]) - where.start)
        self._hold(proxies[: len(present)], present)
        others = self._part(proxies[len(present) :], absent, math.log(sampling.weight))
        self._parts = (*self._parts, others)
        self.probe = self.probe + others.columns.handle

    def logsumexp(self, score: Score, *, over: Axis, where: Where, rows: tuple[Tensor, ...] = ()) -> Tensor:
        """See `SimilarityBlock.logsumexp`; over columns only."""
        if over != "columns":
            self._refuse_part("a log-sum over rows for each class")
        return super().logsumexp(score, over=over, where=where, rows=rows)

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """See `SimilarityBlock.center_similarities`; drawn classes stand for the others."""
        present, absent = (sum_of_centers(part.columns, self._depth, value) for part in self._parts)
        return collectives.sum_over_ranks(present + self._sampling.weight * absent, self._world)

    def count(self, *, over: Axis, where: Where) -> Tensor:
        """See `SimilarityBlock.count`; over columns only."""
        return super().count(over=over, where=where) if over == "columns" else self._refuse_part("a count per class")

    def sum(self, *args: Any, **options: Any) -> Tensor:
        """Refused."""
        return self._refuse_part("a sum over all entries")

    def row_sums(self, *args: Any, **options: Any) -> Tensor:
        """Refused."""
        return self._refuse_part("sums over all classes")

    def logsumexp_and_maximum(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Refused."""
        return self._refuse_part("an extreme over all classes")

    def _best(self, *args: Any, **options: Any) -> Tensor:
        return self._refuse_part("an extreme over all classes")

    def class_sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Refused."""
        return self._refuse_part("the sums of all classes")

    def between_centers(self) -> ClassBlock:
        """Refused."""
        return self._refuse_part("all centers")

    def _refuse_part(self, what: str) -> NoReturn:
        raise BlockError(f"{self.kind} cannot give {what}: it looks at some classes only")


class _TakeRows(torch.autograd.Function):
    """Rows of a bank, with a sparse gradient: an optimizer for sparse gradients touches these rows only."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, index: Tensor) -> Tensor:
        ctx.shape = weight.shape
        ctx.save_for_backward(index)
        return weight[index]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(index[None], gradients[0], ctx.shape, check_invariants=False), None
