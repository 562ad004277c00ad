"""Center loss: the paper's own rule for the centers, and what its repulsion moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import dmlscale
from dmlscale.distributed.world import World
from dmlscale.models.embedder import Embedder
from dmlscale.training.objective import Objective
from dmlscale.training.optim import optimizer
from tests.distributed.pool import GlooPool
from tests.losses import oracles

DIM, NUM_CLASSES, STEPS = 4, 7, 3
SHARES = {1: [13], 2: [12, 1], 3: [6, 0, 7], 4: [2, 5, 0, 6]}


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = 2 * torch.randn(13, DIM, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, NUM_CLASSES - 2, (13,), generator=generator)  # the last two classes never occur
    return x, labels * (labels != step)  # nor the class of the step's number, but for class 0


@dataclass
class Setting:
    """How the centers are trained."""

    weight: float = 1.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    options: tuple[tuple[str, Any], ...] = ()

    def trained(self, world: World) -> tuple[dmlscale.GlobalLoss, Objective]:
        loss = dmlscale.GlobalLoss(
            "center", num_classes=NUM_CLASSES, embedding_dim=DIM, seed=1, group=world.group, **dict(self.options)
        )
        return loss, Objective([(loss, self.weight)]).double()


def run_rank(world: World, setting: Setting) -> list[Tensor]:
    """This rank's centers before the first step and after each."""
    loss, objective = setting.trained(world)
    torch.manual_seed(0)
    optim = optimizer(
        Embedder(nn.Linear(DIM, DIM), DIM, DIM).double(),
        objective,
        name=setting.optimizer,
        backbone_lr=0.1,
        head_lr=0.1,
        bank_lr=0.1,
        weight_decay=0.3,
        bank_weight_decay=0.3,
        momentum=0.0,
    )
    assert loss.bank is not None
    first = sum(SHARES[world.num_ranks][: world.rank])
    mine = slice(first, first + SHARES[world.num_ranks][world.rank])
    seen = [loss.bank.weight.detach().clone()]
    for step in range(STEPS):
        x, y = batch(step)
        optim.zero_grad()
        objective(x[mine].requires_grad_(), y[mine], None, step)[0].backward()
        optim.step()
        objective.step_banks()
        seen.append(loss.bank.weight.detach().clone())
    return seen


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(("weight", "alpha"), [(1.0, 0.5), (0.003, 0.5), (7.0, 0.9)])
def test_centers_follow_the_rule_of_the_paper(gloo_pool: GlooPool, num_ranks: int, weight: float, alpha: float) -> None:
    """Whatever the loss's weight, and untouched by the optimizer and its weight decay."""
    setting = Setting(weight, options=(("alpha", alpha),))
    ranks = gloo_pool.run(num_ranks, run_rank, setting)
    centers = torch.cat([rank[0] for rank in ranks])
    for step in range(STEPS):
        x, y = batch(step)
        moved = oracles.center_alpha_step(x, y, centers, alpha)
        found = torch.cat([rank[step + 1] for rank in ranks])
        close(found, moved)
        absent = torch.ones(NUM_CLASSES, dtype=torch.bool)
        absent[y] = False
        assert torch.equal(found[absent], centers[absent])
        centers = found


@pytest.mark.parametrize("average", ["mean", "sum"])
def test_the_average_does_not_change_the_rule(average: str) -> None:
    close(run_rank(World(), Setting(options=(("average", average),)))[-1], run_rank(World(), Setting())[-1])


def test_centers_without_gradient_are_nobodys_parameters() -> None:
    loss, objective = Setting().trained(World())
    assert loss.bank is not None
    assert not loss.bank.weight.requires_grad
    x, y = batch(0)
    objective(x.requires_grad_(), y)[0].backward()
    assert loss.bank.weight.grad is None


def test_a_step_is_made_once_and_only_in_training() -> None:
    loss, _ = Setting().trained(World())
    assert loss.bank is not None
    start = loss.bank.weight.detach().clone()
    loss.eval()
    loss(*batch(0))
    loss.step_bank()
    assert torch.equal(loss.bank.weight, start)
    loss.train()
    loss(*batch(0))
    assert torch.equal(loss.bank.weight, start)
    loss.step_bank()
    once = loss.bank.weight.detach().clone()
    close(once, oracles.center_alpha_step(*batch(0), start))
    loss.step_bank()
    assert torch.equal(loss.bank.weight, once)


def test_the_rule_in_double_precision_on_single_precision_centers() -> None:
    """As the reproducible step does it."""
    loss = dmlscale.GlobalLoss("center", num_classes=NUM_CLASSES, embedding_dim=DIM)
    assert loss.bank is not None
    start = loss.bank.weight.detach().clone()
    loss(*batch(0))
    loss.step_bank()
    assert loss.bank.weight.dtype == torch.float32
    torch.testing.assert_close(loss.bank.weight.detach(), oracles.center_alpha_step(*batch(0), start.double()).float())


def partners(y: Tensor, centers: Tensor) -> Tensor:
    """Which classes are present, or the nearest other center of one that is."""
    touched = torch.zeros(len(centers), dtype=torch.bool)
    for k in set(y.tolist()):
        distances = [
            (centers[k] - centers[j]).square().sum().item() if j != k else torch.inf for j in range(len(centers))
        ]
        touched[k] = touched[distances.index(min(distances))] = True
    return touched


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("update", ["alpha", "gradient"])
def test_repulsion_moves_present_classes_and_their_nearest_others(
    gloo_pool: GlooPool, num_ranks: int, update: str
) -> None:
    options = (("update", update), ("repulsion", 0.7), ("repulsion_margin", 50.0))
    ranks = gloo_pool.run(num_ranks, gradient_of_rank, Setting(2.0, options=options))
    weight = torch.cat([rank[0] for rank in ranks]).requires_grad_()
    x, y = batch(0)
    value = oracles.center(x, y, weight, repulsion=0.7, repulsion_margin=50.0)
    if update == "alpha":
        value = value - oracles.center(x, y, weight)
    (wanted,) = torch.autograd.grad(2 * value, weight)
    found = torch.cat([rank[1] for rank in ranks])
    close(found, wanted)
    touched = partners(y, weight.detach())
    assert 0 < touched.sum() < NUM_CLASSES
    assert (found[~touched] == 0).all()
    assert (found[touched] != 0).any((1, 2)).all()


def gradient_of_rank(world: World, setting: Setting) -> tuple[Tensor, Tensor]:
    loss, objective = setting.trained(world)
    assert loss.bank is not None
    first = sum(SHARES[world.num_ranks][: world.rank])
    mine = slice(first, first + SHARES[world.num_ranks][world.rank])
    x, y = batch(0)
    objective(x[mine].requires_grad_(), y[mine])[0].backward()
    assert loss.bank.weight.grad is not None
    return loss.bank.weight.detach(), loss.bank.weight.grad


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_rule_and_repulsion_add_up(gloo_pool: GlooPool, num_ranks: int) -> None:
    """The optimizer's step by the repulsion and the rule's step, both from the centers before."""
    options = (("repulsion", 0.7), ("repulsion_margin", 50.0))
    ranks = gloo_pool.run(num_ranks, run_rank, Setting(2.0, "sgd", options))
    centers = torch.cat([rank[0] for rank in ranks])
    for step in range(STEPS):
        x, y = batch(step)
        leaf = centers.clone().requires_grad_()
        apart = oracles.center(x, y, leaf, repulsion=0.7, repulsion_margin=50.0) - oracles.center(x, y, leaf)
        (gradient,) = torch.autograd.grad(2 * apart, leaf)
        moved = oracles.center_alpha_step(x, y, centers) - 0.1 * (gradient + 0.3 * centers)
        found = torch.cat([rank[step + 1] for rank in ranks])
        close(found, moved)
        centers = found


def test_distant_centers_are_not_repelled() -> None:
    loss, objective = Setting(options=(("repulsion", 1.0), ("repulsion_margin", 1e-9))).trained(World())
    assert loss.bank is not None
    objective(*batch(0))[0].backward()
    assert loss.bank.weight.grad is not None
    assert loss.bank.weight.grad.abs().sum() == 0
