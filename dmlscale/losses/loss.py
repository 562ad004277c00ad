"""What every loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dmlscale.losses.block import SimilarityBlock
from dmlscale.losses.search_space import SearchSpace


class Loss(ABC):
    """A frozen dataclass of hyper-parameters that maps a block to one global scalar.

    The fields are the loss's config schema, its command-line keys and its logged parameters. Subclasses are
    registered in a file of their own; see docs/adding_a_loss.md.

    Attributes:
        block: samples x samples, or samples x classes.
        paper: authors, year and title, for the catalogue.
        sharded: what each worker holds a part of, for the catalogue.
        divided_by: what its sums are divided by; all counts are of the global batch.
        rows_are_points: the bank's rows are points among the embeddings, not directions.
        search_space: hyper-parameter -> where a sweep searches it unless told otherwise: around what was published, and
            every draw is a valid loss. What is not in it stays at its default.
    """

    block: ClassVar[Literal["pairs", "classes"]]
    paper: ClassVar[str]
    sharded: ClassVar[str]
    divided_by: ClassVar[str]
    rows_are_points: ClassVar[bool] = False
    search_space: ClassVar[SearchSpace] = {}

    @property
    def on_sphere(self) -> bool:
        """Whether embeddings (and proxies) are divided by their length before the block is made."""
        return True

    @property
    def rows_per_class(self) -> int:
        """Rows in the class bank for each class; 0 for pair losses."""
        return int(self.block == "classes")

    @property
    def steps_bank(self) -> bool:
        """Whether the bank moves by the loss's own rule (`bank_step`), beside what its gradient says."""
        return False

    @property
    def bank_has_gradient(self) -> bool:
        """Whether the loss has a gradient by the bank."""
        return True

    @abstractmethod
    def __call__(self, block: SimilarityBlock) -> Tensor:
        """The loss of the global batch -> ()."""

    def metrics(self, block: SimilarityBlock) -> Mapping[str, Tensor]:
        """What is worth a chart beside the loss, from the bank alone: the block has no samples."""
        return {}

    def bank_step(self, rows: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """The loss's own move of the bank's rows, for those of classes in the batch.

        Args:
            rows: (c, d) the classes' rows.
            sums: (c, d) sum of the classes' samples.
            counts: (c,) number of them, at least 1.

        Returns:
            (c, d) what is added to the rows after the optimizer's step.
        """
        return torch.zeros_like(rows)


class PairLoss(Loss):
    """A loss over samples x samples."""

    block: ClassVar[Literal["pairs", "classes"]] = "pairs"
    sharded: ClassVar[str] = "rows of B x B"


class ClassLoss(Loss):
    """A loss over samples x classes, with one row per class unless it says otherwise."""

    block: ClassVar[Literal["pairs", "classes"]] = "classes"
    sharded: ClassVar[str] = "proxies and their optimizer state"
    divided_by: ClassVar[str] = "the samples"
