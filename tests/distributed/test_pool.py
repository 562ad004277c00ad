"""What goes wrong in one run of the pool does not reach the next."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from dmlscale.distributed.world import World
from tests.distributed import pool as pool_module
from tests.distributed.pool import GlooPool


@pytest.fixture(scope="module")
def pool() -> Iterator[GlooPool]:
    """One of its own, as its processes are killed."""
    pool = GlooPool()
    yield pool
    pool.close()


def number(world: World, value: int) -> int:
    dist.barrier(world.group)
    return value + world.rank


def die_on_rank_0(world: World) -> int:
    if world.rank == 0:
        os._exit(3)
    return -1


def wait_for_rank_0(world: World) -> int:
    if world.rank == 0:
        time.sleep(600)
    dist.barrier(world.group)
    return -1


def raise_nothing(world: World) -> None:
    with pytest.raises(ValueError, match="never"):
        pass


def test_answers_of_a_run_in_which_a_rank_died_are_not_those_of_the_next(pool: GlooPool) -> None:
    with pytest.raises(RuntimeError, match="rank 0 of the pool died"):
        pool.run(3, die_on_rank_0)
    assert pool.run(4, number, 10) == [10, 11, 12, 13]


def test_ranks_that_hang_are_not_waited_for_in_the_next_run(pool: GlooPool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pool.run(2, number, 0) == [0, 1]
    monkeypatch.setattr(pool_module, "LONGEST_S", 0.2)
    with pytest.raises(RuntimeError, match=r"rank 0 of the pool .* no answer in 0 s"):
        pool.run(2, wait_for_rank_0)
    monkeypatch.undo()
    assert pool.run(3, number, 20) == [20, 21, 22]


def test_a_test_that_fails_in_a_rank_is_an_error_there_and_no_death(pool: GlooPool) -> None:
    with pytest.raises(RuntimeError, match="DID NOT RAISE"):
        pool.run(2, raise_nothing)
    processes = pool._processes
    assert pool.run(2, number, 30) == [30, 31]
    assert pool._processes is processes
