"""The queue itself, and that a step's backward pass reads it as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import dmlscale
from dmlscale.distributed.memory_bank import MemoryBank
from dmlscale.distributed.world import World


@pytest.mark.parametrize("size", [1, 4, 7, 20])
def test_the_queue_holds_the_newest_samples_in_their_slots(size: int) -> None:
    bank, slots = MemoryBank(size, 2, world=World()), {}
    for n, length in enumerate((3, 0, 5, 9, 2)):
        first = int(bank.entered)
        values = torch.arange(first, first + length)
        bank.enter(values[:, None].expand(-1, 2).float(), values)
        for value in values.tolist():
            slots[value % size] = value
        embeddings, labels = bank.held()
        assert labels.tolist() == [slots[s] for s in range(len(slots))], n
        assert torch.equal(embeddings[:, 1].long(), labels)
        assert bank.num_held == len(slots)


@pytest.mark.parametrize("name", ["supervised_contrastive", "contrastive", "multi_similarity"])
def test_backward_reads_the_memory_of_the_forward_pass(name: str) -> None:
    """A memory of several tiles, so that none is left in a cache, which this very batch overwrites in part."""
    loss = dmlscale.GlobalLoss(name, embedding_dim=4, memory_size=1500).double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        x = torch.randn(400, 4, generator=generator, dtype=torch.float64).requires_grad_()
        y = torch.randint(0, 50, (400,), generator=generator)
        onlooker = copy.deepcopy(loss).eval()  # does not enter the batch
        assert torch.equal(gradient(loss, x, y), gradient(onlooker, x, y))


def gradient(loss: dmlscale.GlobalLoss, x: Tensor, y: Tensor) -> Tensor:
    return torch.autograd.grad(loss(x, y), x)[0]
