"""Losses: pure functions of a block, one file each. Needs torch alone."""

from __future__ import annotations

from typing import ClassVar, Literal, Protocol

from torch import Tensor

from dmlscale.losses.block import SimilarityBlock
from dmlscale.registry import Registry


class Loss(Protocol):
    """A frozen dataclass of hyper-parameters that maps a block to one global scalar.

    The fields are the loss's config schema, its command-line keys and its logged parameters.
    """

    block: ClassVar[Literal["pairs", "classes"]]  # samples x samples, or samples x classes

    @property
    def on_sphere(self) -> bool:
        """Whether embeddings (and proxies) are divided by their length before the block is made."""

    @property
    def rows_per_class(self) -> int:
        """Rows in the class bank for each class; 0 for pair losses."""

    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""


LOSSES: Registry[Loss] = Registry("loss", "dmlscale.losses")
