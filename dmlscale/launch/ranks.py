"""The collectives that evaluation and mining are given: on the process group's device, with results on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.world import World


class OverRanks:
    """Every rank calls the same methods in the same order.

    Args:
        world: the ranks.
        device: of this rank's model.
    """

    def __init__(self, world: World, device: torch.device) -> None:
        self._world, self._device = world, device

    def gather(self, tensor: Tensor) -> Tensor:
        """(n_r, ...), uneven over ranks -> (sum of n_r, ...) in rank order."""
        here = tensor.to(self._device)
        sizes = collectives.gather_sizes(len(here), self._world, self._device)
        return collectives.gather_rows(here, sizes, self._world).cpu()

    def all_sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of tensors of one shape."""
        return collectives.sum_over_ranks(tensor.to(self._device), self._world).cpu()

    def from_rank_0(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor; the others pass one of the same shape and kind, whatever it holds."""
        return self.all_sum(tensor if self._world.rank == 0 else torch.zeros_like(tensor))

    def texts(self, text: str) -> list[str]:
        """Each rank's text."""
        written = torch.tensor(list(text.encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(written)])).tolist()
        return [bytes(piece.tolist()).decode() for piece in self.gather(written).split(lengths)]
