"""The embeddings of past batches, one range of slots per rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmlscale.distributed.world import World


class MemoryBank(nn.Module):
    """A queue of the last M samples of the global batches, of which this rank holds the slots ``[start, stop)``.

    Samples enter in the order of their identities, rank after rank where they have none, so a slot holds the same
    sample at any number of ranks, also when M is no multiple of the batch. (Wang et al. 2020, "Cross-Batch Memory for
    Embedding Learning", algorithm 1.)

    Args:
        size: M, over all ranks.
        embedding_dim: d.
        world: the ranks that share the queue.

    Attributes:
        embeddings: (stop - start, d) buffer.
        labels: (stop - start,) int64 buffer.
        entered: () int64 buffer, how many samples have entered since the beginning: cursor and fill level in one.

    Raises:
        ValueError: size is not positive.
    """

    embeddings: Tensor
    labels: Tensor
    entered: Tensor

    def __init__(self, size: int, embedding_dim: int, *, world: World) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"a cross-batch memory needs at least one slot, got {size}")
        self.size = size
        self.start, self.stop = world.share(size)
        self.register_buffer("embeddings", torch.zeros(self.stop - self.start, embedding_dim))
        self.register_buffer("labels", torch.zeros(self.stop - self.start, dtype=torch.int64))
        self.register_buffer("entered", torch.zeros((), dtype=torch.int64))

    def held(self) -> tuple[Tensor, Tensor]:
        """This rank's filled slots: (m, d) embeddings, (m,) labels."""
        filled = max(0, min(self.stop, int(self.entered)) - self.start)
        return self.embeddings[:filled], self.labels[:filled]

    @property
    def num_held(self) -> int:
        """Filled slots over all ranks."""
        return min(self.size, int(self.entered))

    @torch.no_grad()
    def enter(self, embeddings: Tensor, labels: Tensor) -> None:
        """Takes the whole global batch (B, d), (B,), the same on every rank, in the order of identities.

        Into new tensors: the backward pass of a step reads the memory again, as it was in the forward pass.
        """
        newest = slice(max(0, len(labels) - self.size), len(labels))
        place = torch.arange(len(labels), device=labels.device)[newest]
        slot = (int(self.entered) + place) % self.size
        mine = (slot >= self.start) & (slot < self.stop)
        here = slot[mine] - self.start
        self.embeddings = self.embeddings.index_copy(0, here, embeddings[newest][mine].to(self.embeddings.dtype))
        self.labels = self.labels.index_copy(0, here, labels[newest][mine])
        self.entered += len(labels)
