from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dmlscale.distributed.class_bank import CLASSES_PER_DRAW, ClassBank
from dmlscale.distributed.world import World
from tests.distributed.pool import GlooPool

NUM_CLASSES, DIM = 10, 4


def rows_of(world: World, rows_per_class: int) -> Tensor:
    return ClassBank(NUM_CLASSES, rows_per_class, DIM, seed=3, world=world).weight.detach()


@pytest.mark.parametrize("rows_per_class", [1, 3])
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_first_values_do_not_depend_on_the_number_of_ranks(
    gloo_pool: GlooPool, num_ranks: int, rows_per_class: int
) -> None:
    parts = gloo_pool.run(num_ranks, rows_of, rows_per_class)
    assert torch.equal(torch.cat(parts), rows_of(World(), rows_per_class))


def test_a_late_range_of_classes_does_not_need_the_early_ones() -> None:
    total = 3 * CLASSES_PER_DRAW + 7
    whole = ClassBank(total, 1, DIM, seed=1, world=World()).weight
    last = ClassBank(total, 1, DIM, seed=1, world=World(rank=3, num_ranks=4))
    assert torch.equal(last.weight, whole[last.start : last.stop])
    assert not torch.equal(whole[0], whole[CLASSES_PER_DRAW])


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(37) % (NUM_CLASSES - 1)  # the last class never occurs
    return torch.randn(37, DIM, generator=generator), labels


def class_means(world: World, rows_per_class: int) -> Tensor:
    embeddings, labels = data()
    bank = ClassBank(NUM_CLASSES, rows_per_class, DIM, seed=3, world=world)
    mine = range(world.rank, 37, world.num_ranks)
    # Ranks have different numbers of batches, and rank 1 none at all.
    batches = [] if world.rank == 1 else [(embeddings[n : n + 1], labels[n : n + 1]) for n in mine]
    if world.rank == 0 and world.num_ranks > 1:
        batches += [(embeddings[n : n + 1], labels[n : n + 1]) for n in range(1, 37, world.num_ranks)]
    bank.start_at_class_means(batches)
    return bank.weight.detach()


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_class_means(gloo_pool: GlooPool, num_ranks: int) -> None:
    weight = torch.cat(gloo_pool.run(num_ranks, class_means, 1))[:, 0]
    embeddings, labels = data()
    unit = normalize(embeddings, dim=1)
    for c in range(NUM_CLASSES - 1):
        # Rank 0 of several brings rank 1's samples, so everything counts once.
        torch.testing.assert_close(weight[c], normalize(unit[labels == c].mean(0) - unit.mean(0), dim=0))
    assert torch.equal(weight[-1], rows_of(World(), 1)[-1, 0])


def means_but_for(world: World, broken: float) -> Tensor:
    embeddings, labels = data()
    embeddings[[3, 8], 0] = broken
    bank = ClassBank(NUM_CLASSES, 1, DIM, seed=3, world=world)
    mine = slice(*world.share(37))
    bank.start_at_class_means([(embeddings[mine], labels[mine])])
    return bank.weight.detach()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_move_no_class(gloo_pool: GlooPool, broken: float) -> None:
    embeddings, labels = data()
    sound = torch.ones(37, dtype=torch.bool)
    sound[[3, 8]] = False
    wanted = ClassBank(NUM_CLASSES, 1, DIM, seed=3, world=World())
    wanted.start_at_class_means([(embeddings[sound], labels[sound])])
    torch.testing.assert_close(torch.cat(gloo_pool.run(2, means_but_for, broken)), wanted.weight.detach())


def plain_means(world: World, only_class: bool) -> Tensor:
    embeddings, labels = data()
    bank = ClassBank(NUM_CLASSES, 1, DIM, seed=3, world=world)
    mine = slice(*world.share(37))
    bank.start_at_class_means([(embeddings[mine], labels[mine] * (not only_class))], directions=only_class)
    return bank.weight.detach()


def test_points_start_at_plain_means(gloo_pool: GlooPool) -> None:
    weight = torch.cat(gloo_pool.run(2, plain_means, False))[:, 0]
    embeddings, labels = data()
    torch.testing.assert_close(weight[3], embeddings[labels == 3].mean(0))


def test_a_class_alone_has_its_own_direction(gloo_pool: GlooPool) -> None:
    weight = torch.cat(gloo_pool.run(2, plain_means, True))[:, 0]
    unit = normalize(data()[0], dim=1)
    torch.testing.assert_close(weight[0], normalize(unit.mean(0), dim=0))


def test_centers_of_a_class_start_apart_around_its_mean(gloo_pool: GlooPool) -> None:
    parts = gloo_pool.run(2, class_means, 3)
    assert torch.equal(torch.cat(parts), torch.cat(gloo_pool.run(1, class_means, 3)))
    centers = torch.cat(parts)[:-1]
    spread = (centers - centers.mean(1, keepdim=True)).norm(dim=2)
    assert spread.min() > 0
    assert spread.max() < 0.11
