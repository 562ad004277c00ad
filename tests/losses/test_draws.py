"""Random numbers of an entry: uniform, independent, and a function of seed, step and identities alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dmlscale
from dmlscale.distributed.world import World
from dmlscale.losses.draws import Chance
from tests.distributed.pool import GlooPool
from tests.losses import oracles

DIM, SEED = 5, 9
MINERS: list[dict[str, Any]] = [{"mining": "random"}, {"mining": "distance_weighted"}]


def test_the_same_numbers_whatever_the_shape_and_the_order() -> None:
    chance = Chance(3, 14)
    rows, columns = torch.tensor([5, 0, 10**15, -7]), torch.tensor([2, 9, 9])
    table = chance.uniform(rows[:, None], columns)
    assert table.shape == (4, 3)
    assert table.dtype == torch.float64
    assert torch.equal(table[:, 1], table[:, 2])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(chance.uniform(rows[order, None], columns.flip(0)), table[order].flip(1))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            assert chance.uniform(row, column) == table[i, j]
    assert torch.equal(Chance(3, 14).uniform(rows[:, None].expand(4, 3), columns.expand(4, 3)), table)


def test_every_seed_step_and_identity_counts() -> None:
    ids = torch.arange(1000)
    pairs = (ids[:, None], ids[None, :10])
    first = Chance(0, 0).uniform(*pairs)
    assert len(first.unique()) == first.numel()
    others = [
        Chance(1, 0).uniform(*pairs),
        Chance(0, 1).uniform(*pairs),
        Chance(-1, 0).uniform(*pairs),
        Chance(2**40, 0).uniform(*pairs),
        Chance(0, 0).uniform(ids[:, None], ids[None, :10] + 10),
        Chance(0, 0).uniform(ids[None, :10], ids[:, None]),  # (a, p) is not (p, a)
        Chance(0, 0).uniform(ids)[:, None].expand_as(first),
    ]
    for other in others:
        together = torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1]
        assert abs(together) < 0.05
    # Step 1 of seed 0 is not step 0 of seed 1, nor is any other of the kind.
    starts = torch.stack([Chance(seed, step).uniform(ids[0]) for seed in range(30) for step in range(30)])
    assert len(starts.unique()) == len(starts)


@pytest.mark.parametrize("which", ["ids", "steps", "seeds", "pairs", "far apart"])
def test_numbers_are_uniform(which: str) -> None:
    """Chi-square over 64 cells, and the correlation of neighbours."""
    n = 20_000
    zero = torch.tensor(0)
    numbers = {
        "ids": lambda: Chance(0, 0).uniform(torch.arange(n)),
        "steps": lambda: torch.stack([Chance(0, step).uniform(zero) for step in range(n // 10)]),
        "seeds": lambda: torch.stack([Chance(seed, 0).uniform(zero) for seed in range(n // 10)]),
        "pairs": lambda: Chance(5, 7).uniform(torch.arange(200)[:, None], torch.arange(100)).flatten(),
        "far apart": lambda: Chance(0, 0).uniform(torch.arange(n) << 40),
    }[which]().flatten()
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = torch.histc(numbers, 64, 0, 1)
    wanted = len(numbers) / 64
    chi_square = ((counts - wanted).square() / wanted).sum().item()
    assert 63 - 5 * 126**0.5 < chi_square < 63 + 5 * 126**0.5
    neighbours = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1].item()
    assert abs(neighbours) < 5 / len(numbers) ** 0.5


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(17, DIM, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (17,), generator=generator)


def run_rank(
    world: World, options: dict[str, Any], order: list[int], cuts: list[int], ids: list[int], step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient, and whose it is."""
    x, y = batch()
    mine = torch.tensor(order).tensor_split(cuts)[world.rank]
    local = x[mine].clone().requires_grad_()
    loss = dmlscale.GlobalLoss("triplet", embedding_dim=DIM, seed=SEED, group=world.group, margin=3.0, **options)
    value = loss(local, y[mine], ids=torch.tensor(ids)[mine], step=step)
    value.backward()
    assert local.grad is not None
    return value.detach(), local.grad, mine


def everyone(
    pool: GlooPool, num_ranks: int, options: dict[str, Any], ids: list[int], *, step: int = 2, shuffle: int = 0
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of the batch, dealt to the ranks in some way."""
    generator = torch.Generator().manual_seed(shuffle)
    order = torch.randperm(17, generator=generator).tolist()
    cuts = torch.randint(0, 18, (num_ranks - 1,), generator=generator).sort().values.tolist()
    ranks = pool.run(num_ranks, run_rank, options, order, cuts, ids, step)
    gradient = torch.empty(17, DIM, dtype=torch.float64)
    gradient[torch.cat([mine for _, _, mine in ranks])] = torch.cat([g for _, g, _ in ranks])
    assert all(torch.equal(value, ranks[0][0]) for value, _, _ in ranks)
    return ranks[0][0], gradient


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


ORACLES = {"random": oracles.triplet_random, "distance_weighted": oracles.triplet_distance_weighted}


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("options", MINERS, ids=str)
def test_the_same_triplets_however_samples_are_dealt(
    gloo_pool: GlooPool, options: dict[str, Any], num_ranks: int
) -> None:
    """The places of the whole batch as identities: the oracle's."""
    x, y = batch()
    x.requires_grad_()
    for step, shuffle in ((0, 1), (2, 2), (2, 3)):
        wanted = ORACLES[options["mining"]](x, y, margin=3.0, chance=Chance(SEED, step))
        value, gradient = everyone(gloo_pool, num_ranks, options, list(range(17)), step=step, shuffle=shuffle)
        close(value, wanted.detach())
        close(gradient, torch.autograd.grad(wanted, x)[0])


@pytest.mark.parametrize("options", MINERS, ids=str)
def test_identities_decide_and_not_places(gloo_pool: GlooPool, options: dict[str, Any]) -> None:
    ids = [(7919 * n) % 1009 - 300 for n in range(17)]
    value, gradient = everyone(gloo_pool, 1, options, ids)
    for num_ranks, shuffle in ((1, 5), (2, 6), (4, 7)):
        other, other_gradient = everyone(gloo_pool, num_ranks, options, ids, shuffle=shuffle)
        close(other, value)
        close(other_gradient, gradient)
    assert not torch.allclose(everyone(gloo_pool, 2, options, ids[::-1])[1], gradient)


@pytest.mark.parametrize("options", MINERS, ids=str)
def test_another_step_draws_other_triplets(gloo_pool: GlooPool, options: dict[str, Any]) -> None:
    ids = list(range(17))
    gradients = [everyone(gloo_pool, 2, options, ids, step=step)[1] for step in (0, 1, 2**31)]
    assert not any(torch.allclose(a, b) for n, a in enumerate(gradients) for b in gradients[:n])


def test_a_loss_counts_its_own_steps_in_training() -> None:
    x, y = batch()
    counting = dmlscale.GlobalLoss("triplet", embedding_dim=DIM, seed=SEED, mining="random")
    told = dmlscale.GlobalLoss("triplet", embedding_dim=DIM, seed=SEED, mining="random")
    for step in range(3):
        assert counting(x, y) == told(x, y, step=step)
    counting.eval()
    assert counting(x, y) == counting(x, y) == told(x, y, step=3)
