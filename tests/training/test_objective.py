"""Joint objectives: a weighted sum of losses, each with its own bank, its own rates and its own name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dmlscale
from dmlscale.config.load import load_config
from dmlscale.distributed.world import World
from dmlscale.launch.build import build_embedder, build_objective, build_trainee
from dmlscale.models.embedder import Embedder
from dmlscale.training.objective import Objective
from dmlscale.training.optim import BankRates, optimizer, set_learning_rates
from tests.distributed.pool import GlooPool
from tests.integration.runs import write_config
from tests.losses import oracles

DIM, NUM_CLASSES = 5, 7
SHARES = {1: [12], 2: [5, 7], 3: [7, 0, 5]}
LABELS = torch.tensor([0, 4, 4, 2, 0, 5, 2, 4, 5, 0, 2, 1])
Term = tuple[str, float, dict[str, Any]]

JOINT: dict[str, list[Term]] = {
    "softmax+center": [("softmax", 1.0, {}), ("center", 0.003, {"update": "gradient"})],
    "softmax+triplet_center": [("softmax", 1.0, {}), ("triplet_center", 0.1, {})],
    "softmax+triplet": [("softmax", 0.7, {}), ("triplet", 2.0, {"mining": "batch_hard"})],
    "triplet+softmax+center": [("triplet", 0.5, {}), ("softmax", 1.0, {}), ("center", 2.0, {"repulsion": 0.3})],
    "twice": [("norm_softmax", 1.0, {"scale": 4.0}), ("triplet", 1.0, {}), ("norm_softmax", 0.25, {"scale": 30.0})],
}


def samples(world: World) -> tuple[Tensor, Tensor]:
    first = sum(SHARES[world.num_ranks][: world.rank])
    mine = slice(first, first + SHARES[world.num_ranks][world.rank])
    x = torch.randn(12, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x[mine].clone().requires_grad_(), LABELS[mine]


def objective_of(world: World, terms: list[Term]) -> Objective:
    return Objective(
        [
            (
                dmlscale.GlobalLoss(
                    name, num_classes=NUM_CLASSES, embedding_dim=DIM, seed=n, group=world.group, **options
                ),
                weight,
            )
            for n, (name, weight, options) in enumerate(terms)
        ]
    ).double()


@dataclass
class Outcome:
    """Sum, terms, gradient of the embeddings, and of each term's bank its rows and their gradient."""

    total: Tensor
    terms: dict[str, Tensor]
    x: Tensor
    banks: list[tuple[Tensor, Tensor | None]]


def run_rank(world: World, terms: list[Term]) -> Outcome:
    objective = objective_of(world, terms)
    x, y = samples(world)
    total, values = objective(x, y, None, 0)
    total.backward()
    assert x.grad is not None
    banks = [(bank.weight.detach(), bank.weight.grad) for bank in objective.banks()]
    return Outcome(total.detach(), values, x.grad, banks)


def oracle(x: Tensor, y: Tensor, centers: Tensor | None, name: str, options: dict[str, Any]) -> Tensor:
    if centers is None:
        value: Tensor = oracles.triplet(x, y, **options)
    elif name == "center" and "update" not in options:  # moved by its own rule, but for the repulsion
        whole = oracles.center(x, y, centers.detach())
        still = x.detach()
        value = whole + oracles.center(still, y, centers, **options) - oracles.center(still, y, centers)
    else:
        options = {key: value for key, value in options.items() if key != "update"}
        value = getattr(oracles, name)(x, y, centers, **options)
    return value


def close(actual: Tensor | None, wanted: Tensor | None) -> None:
    assert actual is not None
    assert wanted is not None
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("joint", list(JOINT))
def test_value_and_gradients_are_weighted_sums(gloo_pool: GlooPool, joint: str, num_ranks: int) -> None:
    ranks = gloo_pool.run(num_ranks, run_rank, JOINT[joint])
    x, y = samples(World())
    banks = [torch.cat([rank.banks[n][0] for rank in ranks]).requires_grad_() for n in range(len(ranks[0].banks))]
    rest = iter(banks)
    values = [
        oracle(x, y, None if name == "triplet" else next(rest), name, options) for name, _, options in JOINT[joint]
    ]
    total = torch.stack([weight * value for (_, weight, _), value in zip(JOINT[joint], values, strict=True)]).sum()
    by_x, *by_banks = torch.autograd.grad(total, [x, *banks])
    for rank in ranks:
        close(rank.total, total.detach())
        for value, wanted in zip(rank.terms.values(), values, strict=True):
            close(value, wanted.detach())
    close(torch.cat([rank.x for rank in ranks]), by_x)
    for n, wanted in enumerate(by_banks):
        close(torch.cat([rank.banks[n][1] for rank in ranks]), wanted)


def test_terms_are_logged_by_name() -> None:
    names = {joint: list(run_rank(World(), terms).terms) for joint, terms in JOINT.items()}
    assert names["softmax+center"] == ["softmax", "center"]
    assert names["triplet+softmax+center"] == ["triplet", "softmax", "center"]
    assert len(set(names["twice"])) == 3
    assert all(name.startswith("norm_softmax") for name in names["twice"][::2])
    assert run_rank(World(), JOINT["softmax+center"][:1]).terms == {}


def test_every_term_has_its_own_bank() -> None:
    objective = objective_of(World(), JOINT["twice"])
    first, second = objective.banks()
    assert first.weight is not second.weight
    assert not torch.equal(first.weight, second.weight)


def network() -> Embedder:
    torch.manual_seed(0)
    return Embedder(nn.Linear(DIM, 6), 6, DIM, channels_last=False).double()


@pytest.mark.parametrize("joint", ["softmax+center", "softmax+triplet_center", "twice"])
def test_every_bank_has_its_own_rates(joint: str) -> None:
    """Plain SGD: a bank moves by -lr (gradient + decay * bank), with its own or the common numbers."""
    objective = objective_of(World(), JOINT[joint])
    own = [BankRates(0.3, 0.01), *[BankRates(None, None)] * (len(JOINT[joint]) - 2), BankRates(0.007, 0.5)]
    optim = optimizer(
        network(),
        objective,
        name="sgd",
        backbone_lr=1.0,
        head_lr=1.0,
        bank_lr=0.1,
        weight_decay=0.2,
        banks=own,
        momentum=0.0,
    )
    names = [name for name in objective.names() if not name.startswith("triplet") or name == "triplet_center"]
    groups = {group["name"]: group for group in optim.param_groups}
    assert {f"bank_{name}" for name in names} <= set(groups)
    for bank, name, rates in zip(objective.banks(), names, (own[0], own[-1]), strict=True):
        group = groups[f"bank_{name}"]
        assert [id(p) for p in group["params"]] == [id(bank.weight)]
        assert (group["lr"], group["weight_decay"]) == (rates.lr, rates.weight_decay)
    before = [bank.weight.detach().clone() for bank in objective.banks()]
    objective(*samples(World()))[0].backward()
    optim.step()
    for bank, start, (lr, decay) in zip(objective.banks(), before, ((0.3, 0.01), (0.007, 0.5)), strict=True):
        assert bank.weight.grad is not None
        close(bank.weight.detach(), start - lr * (bank.weight.grad + decay * start))
    set_learning_rates(optim, 0.5)
    assert [groups[f"bank_{name}"]["lr"] for name in names] == [0.15, 0.0035]


def test_rates_that_are_not_given_are_those_of_all_banks() -> None:
    objective = objective_of(World(), JOINT["softmax+triplet_center"])
    optim = optimizer(
        network(),
        objective,
        name="adamw",
        backbone_lr=1.0,
        head_lr=1.0,
        bank_lr=0.1,
        weight_decay=0.2,
        bank_weight_decay=0.04,
        banks=[BankRates(), BankRates(lr=0.5)],
    )
    rates = {g["name"]: (g["lr"], g["weight_decay"]) for g in optim.param_groups if g["name"].startswith("bank")}
    assert rates == {"bank_softmax": (0.1, 0.04), "bank_triplet_center": (0.5, 0.04)}


def test_a_config_gives_every_term_its_weight_seed_and_rates(tmp_path: Path) -> None:
    losses = [
        {"name": "softmax", "bank_lr": 0.02},
        {"name": "center", "weight": 0.003, "alpha": 0.25},
        {"name": "triplet_center", "weight": 0.1, "bank_lr": 0.5, "bank_weight_decay": 0.125},
        {"name": "norm_softmax", "class_sampling": 0.5},
    ]
    config = load_config(write_config(tmp_path / "joint.yaml", tmp_path, tmp_path, losses=losses), [])
    objective = build_objective(config, NUM_CLASSES, World())
    assert objective.weights == [1.0, 0.003, 0.1, 1.0]
    starts = [bank.weight for bank in objective.banks()]
    assert not any(torch.equal(starts[0], other) for other in starts[1:])
    trainee = build_trainee(config, build_embedder(config), objective, World(), torch.device("cpu"))
    rates = {
        group["name"]: (group["peak_lr"], group["weight_decay"])
        for group in trainee.optimizer.param_groups
        if group["name"].startswith("bank")
    }
    assert rates == {  # the center moves by its own rule
        "bank_softmax": (0.02, 0.0),
        "bank_triplet_center": (0.5, 0.125),
        "bank_norm_softmax": (1e-2, 0.0),
    }
