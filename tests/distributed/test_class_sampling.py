"""Class sampling: which classes are drawn, the estimate on them, and its sparse gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import dmlscale
from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.class_block import ClassRange
from dmlscale.distributed.class_sampling import ClassSampling, SampledClassBlock
from dmlscale.distributed.world import World
from dmlscale.losses.draws import Chance
from dmlscale.losses.scores import ScaledSimilarity
from tests.distributed.pool import GlooPool
from tests.losses.oracles import sampled as oracles

DIM, NUM_CLASSES, SEED = 5, 13, 7
SHARES = {1: [11], 2: [4, 7], 3: [6, 0, 5], 4: [1, 5, 2, 3]}  # of a batch of 11


@dataclass(frozen=True)
class Case:
    """A loss, its options and its loop over the classes that are looked at."""

    loss: str
    oracle: Callable[..., Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    own_names: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.loss, *(f"{k}={v}" for k, v in self.options.items())])


CASES = [
    Case("softmax", oracles.softmax),
    Case("norm_softmax", oracles.norm_softmax),
    Case("norm_softmax", oracles.norm_softmax, {"scale": 200.0}, {"scale": 200.0}),
    Case("cosface", oracles.cosface),
    Case("arcface", oracles.arcface),
    Case("proxy_nca", oracles.proxy_nca),
    Case("proxy_nca", oracles.proxy_nca, {"form": "plus_plus"}, {"form": "plus_plus"}),
    Case("circle_proxy", oracles.circle_proxy),
    Case("soft_triple", oracles.soft_triple, {"centers_per_class": 3}),
    Case("soft_triple", oracles.soft_triple, {"centers_per_class": 1}),
]


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(11, DIM, generator=generator, dtype=torch.float64)
    return x, torch.tensor([0, 4, 4, 12, 0, 7, 4, 12, 7, 7, 0])


def made(world: World, case: Case, sampling: ClassSampling | None) -> dmlscale.GlobalLoss:
    return dmlscale.GlobalLoss(
        case.loss,
        num_classes=NUM_CLASSES,
        embedding_dim=DIM,
        seed=SEED,
        group=world.group,
        class_sampling=sampling,
        **case.options,
    ).double()


@dataclass
class Outcome:
    """Loss, gradient of the embeddings, of this rank's bank, and the classes with a gradient."""

    loss: Tensor
    x: Tensor
    bank: Tensor
    looked_at: list[int]
    weight: Tensor


def run_rank(world: World, case: Case, sampling: ClassSampling | None, step: int) -> Outcome:
    x, y = batch()
    loss = made(world, case, sampling)
    first = sum(SHARES[world.num_ranks][: world.rank])
    mine = slice(first, first + SHARES[world.num_ranks][world.rank])
    local = x[mine].clone().requires_grad_()
    value = loss(local, y[mine], step=step)
    value.backward()
    assert loss.bank is not None
    gradient = loss.bank.weight.grad
    assert gradient is not None
    assert local.grad is not None
    assert gradient.is_sparse == (sampling is not None)
    rows = (gradient.coalesce().indices()[0] + loss.bank.start).tolist() if gradient.is_sparse else []
    return Outcome(value.detach(), local.grad, gradient.to_dense(), rows, loss.bank.weight.detach())


def looked_at(y: Tensor, sampling: ClassSampling, step: int) -> dict[int, float]:
    """The classes and their weights, one class at a time."""
    present = set(y.tolist())
    chance = Chance(SEED, step)
    drawn = [c for c in range(NUM_CLASSES) if chance.uniform(torch.tensor(c)) < sampling.rate and c not in present]
    weight = 1 / sampling.rate if sampling.unbiased else 1.0
    return {c: 1.0 for c in present} | {c: weight for c in drawn}


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient_are_those_of_the_classes_looked_at(gloo_pool: GlooPool, case: Case, num_ranks: int) -> None:
    x, y = batch()
    x.requires_grad_()
    for rate, unbiased, step in ((0.4, True, 0), (0.4, False, 3), (0.02, True, 1)):
        sampling = ClassSampling(rate, unbiased=unbiased)
        ranks = gloo_pool.run(num_ranks, run_rank, case, sampling, step)
        weights = looked_at(y, sampling, step)
        assert sorted(c for rank in ranks for c in rank.looked_at) == sorted(weights)
        weight = torch.cat([rank.weight for rank in ranks]).requires_grad_()
        wanted = case.oracle(x, y, weight, weights, **case.own_names)
        by_x, by_bank = torch.autograd.grad(wanted, [x, weight])
        for rank in ranks:
            close(rank.loss, wanted.detach())
        close(torch.cat([rank.x for rank in ranks]), by_x)
        close(torch.cat([rank.bank for rank in ranks]), by_bank)


def test_every_step_and_seed_draws_other_classes() -> None:
    ids = torch.arange(2000)
    sampling = ClassSampling(0.3)
    first = sampling.drawn(ids, Chance(1, 5))
    assert torch.equal(first[700:], sampling.drawn(ids[700:], Chance(1, 5)))
    assert abs(first.double().mean() - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5
    for other in (Chance(1, 6), Chance(2, 5)):
        agree = (first == sampling.drawn(ids, other)).double().mean()
        assert abs(agree - (0.3**2 + 0.7**2)) < 0.06  # independent


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rate_of_one_is_no_sampling(gloo_pool: GlooPool, case: Case, num_ranks: int) -> None:
    plain = gloo_pool.run(num_ranks, run_rank, case, None, 2)
    for rank, wanted in zip(gloo_pool.run(num_ranks, run_rank, case, ClassSampling(1.0), 2), plain, strict=True):
        close(rank.loss, wanted.loss)
        close(rank.x, wanted.x)
        close(rank.bank, wanted.bank)


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_sum_of_exponentials_is_right_on_average(unbiased: bool) -> None:
    """Over many steps; its logarithm is not."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(60, 1, DIM, generator=generator, dtype=torch.float64)
    x, y = torch.randn(4, DIM, generator=generator, dtype=torch.float64), torch.tensor([3, 30, 31, 3])
    everything = (x @ weight[:, 0].T).exp()
    present = everything[:, [3, 30, 31]].sum(1) - everything[torch.arange(4), y]
    absent = everything.sum(1) - everything[:, [3, 30, 31]].sum(1)
    sampling, order = ClassSampling(0.2, unbiased=unbiased), y.argsort(stable=True)
    found = []
    for step in range(1500):
        block = SampledClassBlock(
            LocalBatch(x, y, torch.arange(4)),
            weight,
            ClassRange(0, 60, 60),
            sampling,
            Chance(0, step),
            world=World(),
            on_sphere=False,
        )
        found.append(block.logsumexp(ScaledSimilarity(1.0), over="columns", where="negative").exp())
    sums = torch.stack(found)
    error = (sums.mean(0) - (present + (1.0 if unbiased else 0.2) * absent)[order]) / (sums.std(0) / len(sums) ** 0.5)
    assert error.abs().max() < 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("proxy_anchor", {}),
        ("center", {}),
        ("center", {"update": "gradient", "repulsion": 1.0}),
        ("triplet_center", {}),
    ],
)
def test_losses_of_all_classes_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot sample classes: .*some classes only"):
        dmlscale.GlobalLoss(name, num_classes=9, embedding_dim=4, class_sampling=ClassSampling(0.5), **options)


def test_pair_losses_and_rates_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"triplet.*class sampling is for class losses"):
        dmlscale.GlobalLoss("triplet", embedding_dim=4, class_sampling=ClassSampling(0.5))
    for rate in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
            ClassSampling(rate)
