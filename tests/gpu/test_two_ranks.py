"""Two processes that share a GPU, over gloo: NCCL wants a GPU for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dmlscale
from dmlscale.distributed.world import World
from dmlscale.launch.task import Task
from dmlscale.launch.worker import work
from tests.distributed.pool import GlooPool
from tests.integration.runs import batches, curve, task_of

LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("supervised_contrastive", {}),
    ("triplet", {"mining": "semi_hard"}),
    ("proxy_anchor", {}),
    ("norm_softmax", {}),
    ("soft_triple", {}),
]


def on_gpu(world: World, task: Task) -> dict[str, Any]:
    """For the gloo pool."""
    return work(task, world, torch.device("cuda", 0))


def loss_on_gpu(world: World, name: str, options: dict[str, Any], sizes: list[int]) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 16, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 6, (sum(sizes),), generator=generator)
    start = sum(sizes[: world.rank])
    mine = slice(start, start + sizes[world.rank])
    loss = dmlscale.GlobalLoss(name, num_classes=6, embedding_dim=16, group=world.group, **options).double().cuda()
    rows = x[mine].cuda().requires_grad_()
    value = loss(rows, y[mine].cuda())
    value.backward()
    assert rows.grad is not None
    return value.detach().cpu(), rows.grad.cpu()


@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_a_loss_over_two_ranks_is_that_of_one(gloo_pool: GlooPool, name: str, options: dict[str, Any]) -> None:
    ((value, gradient),) = gloo_pool.run(1, loss_on_gpu, name, options, [60])
    ranks = gloo_pool.run(2, loss_on_gpu, name, options, [37, 23])
    for rank in ranks:
        torch.testing.assert_close(rank[0], value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.cat([rank[1] for rank in ranks]), gradient, rtol=1e-10, atol=1e-10)


def test_two_ranks_follow_the_curve_of_one(gloo_pool: GlooPool, config_file: Path) -> None:
    options = ("train.precision=fp32", "train.steps=6", "train.checkpoint_every=4")
    one = task_of(config_file, "one", *options)
    gloo_pool.run(1, on_gpu, one)
    two = task_of(config_file, "two", *options)
    gloo_pool.run(2, on_gpu, two)
    assert batches(two.folder) == batches(one.folder)
    assert curve(two.folder) == pytest.approx(curve(one.folder), rel=1e-2)
