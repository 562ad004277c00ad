from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import dmlscale
from dmlscale.distributed import collectives
from dmlscale.distributed.exact_sum import exact_sum
from dmlscale.distributed.node_groups import grouped_by_node
from dmlscale.distributed.world import World
from tests.distributed.pool import GlooPool

LAYOUTS = ["aabb", "abba", "aaab", "abca"]  # nodes of four ranks
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("lifted_structure", {}),
    ("multi_similarity", {"memory_size": 24}),
    ("norm_softmax", {"class_sampling": 0.5}),
    ("proxy_anchor", {}),
    ("soft_triple", {"centers_per_class": 2}),
]


def losses_and_gradients(world: World, layout: str | None) -> list[Tensor]:
    """Of two steps with each loss, on uneven batches."""
    if layout is not None:
        world = grouped_by_node(world, layout[world.rank])
        assert world.nodes is not None
    with patch.object(collectives, "SMALLEST_BY_NODE", 0):  # these tensors are small
        return _two_steps(world)


def _two_steps(world: World) -> list[Tensor]:
    x = torch.randn(2, 21, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mine = slice(*[0, 4, 5, 12, 21][world.rank : world.rank + 2])
    found = []
    for name, options in LOSSES:
        loss = dmlscale.GlobalLoss(name, num_classes=7, embedding_dim=5, group=world.group, **options).double()
        for part in (loss, loss.bank, loss.memory):
            if part is not None:
                part.world = world
        for batch in x:
            local = batch[mine].clone().requires_grad_()
            value = loss(local, (torch.arange(21) % 7)[mine])
            value.backward()
            assert local.grad is not None
            found += [value.detach(), local.grad]
        found += [p.grad.to_dense() for p in loss.parameters() if p.grad is not None]
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_gradients_are_those_by_rank(gloo_pool: GlooPool, layout: str) -> None:
    by_rank = gloo_pool.run(4, losses_and_gradients, None)
    by_node = gloo_pool.run(4, losses_and_gradients, layout)
    torch.testing.assert_close(by_node, by_rank, rtol=1e-12, atol=1e-12)


def exact(world: World, layout: str | None) -> Tensor:
    if layout is not None:
        world = grouped_by_node(world, layout[world.rank])
    spread = 10.0 ** torch.arange(-6, 6).repeat(50)
    terms = torch.randn(8, 600, generator=torch.Generator().manual_seed(0)) * spread
    return exact_sum(list(terms[world.rank :: world.num_ranks]), 8, world)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_sums_have_the_same_bits(gloo_pool: GlooPool, layout: str) -> None:
    alone = exact(World(), None)
    assert all(torch.equal(total, alone) for total in gloo_pool.run(4, exact, layout))
