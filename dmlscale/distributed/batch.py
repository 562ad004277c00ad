"""One rank's samples as a loss gets them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.world import World


class LocalBatch(NamedTuple):
    """Samples of one rank.

    Args:
        embeddings: (b, d).
        labels: (b,) int64.
        ids: (b,) int64 identity of each sample, unique in the global batch: decides ties and random choices.
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor

    def order(self) -> Tensor:
        """Positions sorted by label, then identity: the same order at any number of ranks."""
        by_id = self.ids.argsort(stable=True)
        return by_id[self.labels[by_id].argsort(stable=True)]


def places_in_batch(labels: Tensor, world: World) -> Tensor:
    """(b,) place of each sample in the global batch, rank after rank: the identity of samples without one."""
    sizes = collectives.gather_sizes(len(labels), world, labels.device)
    first = sum(sizes[: world.rank])
    return torch.arange(first, first + len(labels), device=labels.device)
