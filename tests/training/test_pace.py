"""A slow rank is named; one with more samples, or one that stumbled once, is not."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.distributed.world import World
from dmlscale.training.pace import LEAST_S, SILENT_S, SLOW, Pace, SlowRanks, Stopwatch, imbalance
from tests.distributed.pool import GlooPool

CPU = torch.device("cpu")


class Listener:
    """Looks at paces, and writes down what is said."""

    def __init__(self, num_ranks: int) -> None:
        self.said: list[str] = []
        self.now = 0.0
        hosts = [f"n{rank}" for rank in range(num_ranks)]
        self._slow = SlowRanks(
            hosts,
            fault=lambda text: self.said.append("fault: " + text),
            message=self.said.append,
            clock=lambda: self.now,
        )

    def look(self, *own_s: float, samples: Sequence[float] | None = None, data_s: float = 0.0) -> list[str]:
        """What is said to own times."""
        before = len(self.said)
        counts = samples or [10.0] * len(own_s)
        self._slow.look([Pace(data_s, own, count) for own, count in zip(own_s, counts, strict=True)])
        return self.said[before:]


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
def test_a_slow_rank_is_named_once_and_again_when_it_is_over(num_ranks: int) -> None:
    listener = Listener(num_ranks)
    slow, fast = [0.1] * (num_ranks - 1) + [0.31], [0.1] * num_ranks
    assert not listener.look(*slow, data_s=0.25)
    assert listener.look(*slow, data_s=0.25) == [
        f"fault: rank {num_ranks - 1} (n{num_ranks - 1}) is slow: 0.31 s a step before it meets the others, which take "
        f"0.1 s (0.25 s of it waiting for data); all wait for it"
    ]
    assert not any(listener.look(*slow) for _ in range(5))
    assert not listener.look(*fast)
    assert listener.look(*fast) == [
        f"rank {num_ranks - 1} (n{num_ranks - 1}) is no longer slow: 0.1 s a step, the others 0.1 s"
    ]
    assert not listener.look(*fast)


def test_what_comes_and_goes_is_not_said_all_the_time() -> None:
    listener = Listener(2)
    for _ in range(20):
        for own in (0.3, 0.3, 0.1, 0.1):
            listener.look(0.1, own)
            listener.now += 1
    assert len(listener.said) == 2
    listener.now = SILENT_S + 10
    assert [listener.look(0.1, 0.3) for _ in range(2)][1]


def test_one_that_stumbles_once_is_not_blamed() -> None:
    listener = Listener(3)
    for _ in range(5):
        assert not listener.look(0.1, 0.1, 5.0)
        assert not listener.look(0.1, 0.1, 0.1)


def test_several_slow_ranks_are_all_named() -> None:
    listener = Listener(4)
    listener.look(0.1, 0.1, 0.4, 0.5)
    assert len(listener.look(0.1, 0.1, 0.4, 0.5)) == 2
    three = Listener(3)
    three.look(0.1, 0.4, 0.5)
    assert len(three.look(0.1, 0.4, 0.5)) == 2


def test_milliseconds_are_not_worth_a_word() -> None:
    listener = Listener(2)
    assert not any(listener.look(0.001, 0.001 + LEAST_S * 0.9) for _ in range(5))


@given(st.lists(st.integers(1, 4), min_size=2, max_size=6), st.floats(0.0, 0.2), st.floats(0.02, 1.0))
def test_ranks_with_more_samples_are_not_blamed(streams: list[int], fixed_s: float, each_s: float) -> None:
    """Whether or not a step also takes a time that no number of samples changes."""
    listener = Listener(len(streams))
    own = [fixed_s + each_s * number for number in streams]
    assert not any(listener.look(*own, samples=streams) for _ in range(4))


def test_a_slow_rank_with_fewer_samples_is_blamed_where_others_wait_for_it() -> None:
    listener = Listener(3)
    assert not any(listener.look(0.2, 0.2, 0.29, samples=[2, 2, 1]) for _ in range(4))
    assert [listener.look(0.2, 0.2, 0.2 * SLOW + 0.01, samples=[2, 2, 1]) for _ in range(2)][1]


def test_a_rank_without_samples_is_left_out() -> None:
    listener = Listener(2)
    assert not any(listener.look(0.1, 5.0, samples=[4, 0]) for _ in range(3))
    assert imbalance([Pace(0, 0.1, 4), Pace(0, 5.0, 0)])["throughput/imbalance"] == 1


def test_figures_are_for_equal_batches() -> None:
    assert imbalance([Pace(0, 0.1, 4)]) == {}
    uneven = imbalance([Pace(0.1, 0.2, 2), Pace(0, 0.1, 1), Pace(0, 0.1, 1)])
    assert uneven == pytest.approx({"throughput/slowest_rank_s": 0.2, "throughput/imbalance": 1.0})
    slow = imbalance([Pace(0, 0.3, 1), Pace(0, 0.1, 1), Pace(0, 0.1, 1)])
    assert slow == pytest.approx({"throughput/slowest_rank_s": 0.3, "throughput/imbalance": 3.0})


def timed(
    world: World, seconds: list[tuple[float, float]], meets_in_forward: bool
) -> tuple[dict[str, float], list[Pace]]:
    """Three steps in which ranks wait for data and embed for so long, and wait for each other."""
    watch = Stopwatch(CPU, meets_in_forward=meets_in_forward)
    data_s, forward_s = seconds[world.rank]
    for _ in range(3):
        watch.waits()
        time.sleep(data_s)
        watch.has_batch(5 + world.rank)
        time.sleep(forward_s)
        watch.embedded()
        torch.distributed.barrier(world.group)
        watch.stepped(5 + 6)
    return watch.read(world)


@pytest.mark.parametrize("meets_in_forward", [False, True])
def test_all_ranks_learn_how_long_each_takes_by_itself(gloo_pool: GlooPool, meets_in_forward: bool) -> None:
    results = gloo_pool.run(2, timed, [(0.0, 0.05), (0.1, 0.15)], meets_in_forward)
    for figures, paces in results:
        assert paces == results[0][1]
        assert [pace.samples for pace in paces] == [5, 6]
        assert 0 <= paces[0].data_s < 0.1 <= paces[1].data_s
        forward = [pace.own_s - pace.data_s for pace in paces]
        if meets_in_forward:
            assert forward == pytest.approx([0, 0])
        else:
            assert 0.05 <= forward[0] < 0.15 <= forward[1]
        assert figures["throughput/samples_per_s"] == pytest.approx(11 * figures["throughput/steps_per_s"])
        assert 0 < figures["throughput/steps_per_s"] < 4
    assert results[1][0]["data/wait_fraction"] > results[0][0]["data/wait_fraction"]


def test_what_is_forgotten_does_not_count() -> None:
    watch = Stopwatch(CPU, meets_in_forward=False)
    watch.waits()
    time.sleep(0.05)
    watch.has_batch(4)
    watch.embedded()
    watch.stepped(4)
    watch.restart()
    figures, (pace,) = watch.read(World())
    assert figures == {"throughput/samples_per_s": 0, "throughput/steps_per_s": 0, "data/wait_fraction": 0}
    assert pace == Pace(0, 0, 0)
