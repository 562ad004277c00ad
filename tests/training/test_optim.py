from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import dmlscale
from dmlscale.distributed.world import World
from dmlscale.models.embedder import Embedder
from dmlscale.training.objective import Objective
from dmlscale.training.optim import clip_gradients, optimizer, schedule, set_learning_rates
from tests.distributed.pool import GlooPool


def made(world: World) -> tuple[Embedder, Objective]:
    torch.manual_seed(0)
    embedder = Embedder(nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4)), 4, 8, channels_last=False)
    terms = [
        (dmlscale.GlobalLoss("proxy_anchor", num_classes=5, embedding_dim=8, group=world.group), 1.0),
        (dmlscale.GlobalLoss("triplet", embedding_dim=8, group=world.group), 0.5),
    ]
    return embedder, Objective(terms)


def test_groups_hold_every_parameter_once_and_norms_are_not_decayed() -> None:
    embedder, objective = made(World())
    optim = optimizer(embedder, objective, name="adamw", backbone_lr=1.0, head_lr=2.0, bank_lr=3.0, weight_decay=0.1)
    held = [p for group in optim.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in [*embedder.parameters(), *objective.parameters()]}
    assert len(held) == len({id(p) for p in held})
    rates = {group["name"]: group["lr"] for group in optim.param_groups}
    assert rates == {"backbone": 1.0, "head": 2.0, "bank": 3.0}
    for group in optim.param_groups:
        if all(p.ndim == 1 for p in group["params"]):
            assert group["weight_decay"] == 0
    set_learning_rates(optim, 0.5)
    assert {group["name"]: group["lr"] for group in optim.param_groups} == {"backbone": 0.5, "head": 1.0, "bank": 1.5}


def test_schedules() -> None:
    cosine = schedule("cosine", total_steps=110, warmup_steps=10)
    assert [cosine(0), cosine(9), cosine(10)] == pytest.approx([0.1, 1.0, 1.0])
    assert cosine(60) == pytest.approx(0.5)
    assert cosine(110) == pytest.approx(0.0)
    step = schedule("step", total_steps=100, step_every=10, step_factor=0.5)
    assert [step(9), step(10), step(25)] == [1.0, 0.5, 0.25]
    assert schedule("constant", total_steps=5)(4) == 1.0


def clipped(world: World, max_norm: float) -> Tensor:
    embedder, objective = made(world)
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    mine = slice(*world.share(8))
    loss, _ = objective(embedder(x[mine]), (torch.arange(8) % 4)[mine])
    loss.backward()
    for p in embedder.parameters():  # what the data parallelism does
        if world.num_ranks > 1 and p.grad is not None:
            torch.distributed.all_reduce(p.grad, group=world.group)
    clip_gradients(embedder, objective, max_norm, world)
    bank = objective.banks()[0].weight.grad
    assert bank is not None
    return torch.cat([p.grad.flatten() for p in embedder.parameters() if p.grad is not None] + [bank.flatten()])


def test_clipping_counts_all_shards(gloo_pool: GlooPool) -> None:
    whole = clipped(World(), 0.5)
    assert whole.norm() == pytest.approx(0.5, rel=1e-4)
    shared = sum(p.numel() for p in made(World())[0].parameters())
    ranks = gloo_pool.run(3, clipped, 0.5)
    together = torch.cat([ranks[0][:shared], *(rank[shared:] for rank in ranks)])
    torch.testing.assert_close(together, whole, rtol=1e-4, atol=1e-6)
    assert torch.equal(clipped(World(), 1e9), clipped(World(), 1e8))
