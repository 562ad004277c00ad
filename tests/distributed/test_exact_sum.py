from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmlscale.distributed.exact_sum import exact_sum
from dmlscale.distributed.world import World
from tests.distributed.pool import GlooPool

NUM_TERMS = 8


def terms(seed: int = 0, spread: float = 12.0) -> list[Tensor]:
    """Vectors whose entries differ by many orders of magnitude, so that the order of a plain sum shows."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(500, generator=generator) * 10 ** (spread * (torch.rand(500, generator=generator) - 0.5))
        for _ in range(NUM_TERMS)
    ]


def sum_on_rank(world: World) -> Tensor:
    return exact_sum(terms()[world.rank :: world.num_ranks], NUM_TERMS, world)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_bits_do_not_depend_on_the_number_of_ranks(gloo_pool: GlooPool, num_ranks: int) -> None:
    alone = exact_sum(terms(), NUM_TERMS, World())
    assert all(torch.equal(result, alone) for result in gloo_pool.run(num_ranks, sum_on_rank))


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(NUM_TERMS)), seed=st.integers(0, 100))
def test_bits_do_not_depend_on_the_order(order: list[int], seed: int) -> None:
    vectors = terms(seed)
    shuffled = exact_sum([vectors[n] for n in order], NUM_TERMS, World())
    assert torch.equal(shuffled, exact_sum(vectors, NUM_TERMS, World()))


def test_the_sum_is_the_sum() -> None:
    vectors = terms(spread=3.0)
    wanted = torch.stack(vectors).double().sum(0)
    torch.testing.assert_close(exact_sum(vectors, NUM_TERMS, World()).double(), wanted, rtol=1e-6, atol=1e-9)


def test_zero_stays_zero_and_infinity_shows() -> None:
    assert torch.equal(exact_sum([torch.zeros(3)] * 2, 2, World()), torch.zeros(3))
    assert exact_sum([torch.tensor([1.0, torch.inf])], 1, World()).isnan().all()
