from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dmlscale
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import data_parallel
from tests.distributed.pool import GlooPool


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "proxy_ancor", "num_classes": 3}, "did you mean 'proxy_anchor'"),
        ({"name": "proxy_anchor"}, "pass num_classes"),
        ({"name": "proxy_anchor", "num_classes": 3, "margn": 1.0}, "did you mean 'margin'"),
        ({"name": "proxy_anchor", "num_classes": 3, "margin": 2.0}, "margin is a cosine"),
        ({"name": "triplet", "mining": "hardest"}, "mining must be one of 'semi_hard'"),
        ({"name": "triplet", "margin": -1.0}, "must not be negative"),
        ({"name": "soft_triple", "num_classes": 3, "centers_per_class": 0}, "at least 1"),
        ({"name": "norm_softmax", "num_classes": 3, "scale": 0.0}, "must be positive"),
        ({"name": "lifted_structure", "data_parallel": "max"}, "'sum' or 'mean'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dmlscale.GlobalLoss(**{"embedding_dim": 4, **options})


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 1]), r"must be \(b, 4\)"),
        (torch.zeros(2, 4), torch.tensor([0, 1, 2]), r"labels must be \(2,\)"),
        (torch.zeros(2, 4), torch.tensor([0.0, 1.0]), "int64"),
        (torch.zeros(2, 4), torch.tensor([0, 3]), "outside 0..2"),
        (torch.zeros(2, 4), torch.tensor([-1, 0]), "outside 0..2"),
    ],
)
def test_wrong_batches_are_named(embeddings: Tensor, labels: Tensor, message: str) -> None:
    loss = dmlscale.GlobalLoss("proxy_anchor", num_classes=3, embedding_dim=4)
    with pytest.raises(ValueError, match=message):
        loss(embeddings, labels)


@pytest.mark.parametrize("ids", [torch.tensor([0, 1, 2]), torch.tensor([0.0, 1.0])])
def test_wrong_ids_are_named(ids: Tensor) -> None:
    loss = dmlscale.GlobalLoss("triplet", embedding_dim=4)
    with pytest.raises(ValueError, match=r"ids must be \(2,\) int64"):
        loss(torch.zeros(2, 4), torch.tensor([0, 1]), ids=ids)


def test_calls_are_counted_in_the_state() -> None:
    loss = dmlscale.GlobalLoss("triplet", embedding_dim=4, mining="random")
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    first, second = loss(x, y).item(), loss(x, y).item()
    again = dmlscale.GlobalLoss("triplet", embedding_dim=4, mining="random")
    again.load_state_dict({"steps": torch.tensor(1)})
    assert again(x, y).item() == second != first
    with pytest.raises(ValueError, match="rate must be in"):
        dmlscale.GlobalLoss("cosface", num_classes=4, embedding_dim=4, class_sampling=0.0)


def test_centers_that_were_not_moved_are_told() -> None:
    loss = dmlscale.GlobalLoss("center", num_classes=2, embedding_dim=4)
    loss(torch.randn(4, 4), torch.arange(4) % 2)
    with pytest.warns(UserWarning, match=r"step_bank\(\) was not called"):
        loss(torch.randn(4, 4), torch.arange(4) % 2)


def test_pair_losses_have_no_bank() -> None:
    loss = dmlscale.GlobalLoss("triplet", embedding_dim=4)
    assert not list(loss.parameters())
    with pytest.raises(ValueError, match="no rows per class"):
        loss.start_at_class_means([])


def ddp_gradient(world: World, averaging: bool) -> Tensor:
    """Gradient of a network under our summing DDP, or under torch's own."""
    torch.manual_seed(0)
    net: nn.Module = nn.Linear(4, 3).double()
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.arange(12) % 4
    if averaging and world.num_ranks > 1:
        wrapped: nn.Module = nn.parallel.DistributedDataParallel(net, process_group=world.group)
    else:
        wrapped = data_parallel(net, world)
    loss = dmlscale.GlobalLoss(
        "lifted_structure", embedding_dim=3, data_parallel="mean" if averaging else "sum", group=world.group
    )
    mine = slice(0, 9) if world.rank == 0 else slice(9, 12)
    loss(wrapped(x[mine] if world.num_ranks > 1 else x), y[mine] if world.num_ranks > 1 else y).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("averaging", [False, True])
def test_both_kinds_of_data_parallelism_give_the_global_gradient(gloo_pool: GlooPool, averaging: bool) -> None:
    alone = gloo_pool.run(1, ddp_gradient, averaging)[0]
    for gradient in gloo_pool.run(2, ddp_gradient, averaging):
        torch.testing.assert_close(gradient, alone, rtol=1e-10, atol=1e-12)


def few_classes(world: World, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient of the embeddings and of this rank's classes, of which there may be none."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mine = slice(*world.share(9))
    local = x[mine].clone().requires_grad_()
    loss = dmlscale.GlobalLoss(
        "soft_triple", num_classes=num_classes, embedding_dim=4, group=world.group, centers_per_class=2
    ).double()
    value = loss(local, (torch.arange(9) % num_classes)[mine])
    value.backward()
    assert loss.bank is not None
    assert local.grad is not None
    assert loss.bank.weight.grad is not None
    return value.detach(), local.grad, loss.bank.weight.grad


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_more_ranks_than_classes(gloo_pool: GlooPool, num_classes: int) -> None:
    value, by_x, by_bank = gloo_pool.run(1, few_classes, num_classes)[0]
    ranks = gloo_pool.run(4, few_classes, num_classes)
    assert min(len(rank[2]) for rank in ranks) == 0
    for rank in ranks:
        torch.testing.assert_close(rank[0], value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.cat([rank[1] for rank in ranks]), by_x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat([rank[2] for rank in ranks]), by_bank, rtol=1e-10, atol=1e-12)
