"""How fast a run is, and how long each rank takes by itself."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch

from dmlscale.distributed.world import World
from dmlscale.training import pace as pace_module
from dmlscale.training.pace import Pace, Stopwatch, imbalance
from tests.distributed.pool import GlooPool

CPU = torch.device("cpu")


def test_a_rank_without_samples_is_left_out() -> None:
    assert imbalance([Pace(0, 0.1, 4, 1), Pace(0, 5.0, 0, 1)])["throughput/imbalance"] == 1


def test_figures_are_for_equal_batches() -> None:
    assert imbalance([Pace(0, 0.1, 4, 1)]) == {}
    uneven = imbalance([Pace(0.1, 0.2, 2, 1), Pace(0, 0.1, 1, 1), Pace(0, 0.1, 1, 1)])
    assert uneven == pytest.approx({"throughput/slowest_rank_s": 0.2, "throughput/imbalance": 1.0})
    slow = imbalance([Pace(0, 0.3, 1, 1), Pace(0, 0.1, 1, 1), Pace(0, 0.1, 1, 1)])
    assert slow == pytest.approx({"throughput/slowest_rank_s": 0.3, "throughput/imbalance": 3.0})


class Clock:
    """Seconds that pass only where a test says so: how busy the machine is changes nothing."""

    def __init__(self) -> None:
        self._now = 0.0

    def perf_counter(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds

    def wait_for_others(self, world: World) -> None:
        latest = torch.tensor(self._now, dtype=torch.float64)
        torch.distributed.all_reduce(latest, torch.distributed.ReduceOp.MAX, group=world.group)
        self._now = latest.item()


def timed(
    world: World, seconds: list[tuple[float, float]], meets_in_forward: bool
) -> tuple[dict[str, float], list[Pace]]:
    """Three steps in which ranks wait for data and embed for so long, and wait for each other."""
    clock = Clock()
    with patch.object(pace_module, "time", clock):
        watch = Stopwatch(CPU, meets_in_forward=meets_in_forward)
        data_s, forward_s = seconds[world.rank]
        for _ in range(3):
            watch.waits()
            clock.sleep(data_s)
            watch.has_batch(5 + world.rank)
            clock.sleep(forward_s)
            watch.embedded()
            clock.wait_for_others(world)
            watch.stepped(5 + 6)
        return watch.read(world)


@pytest.mark.parametrize("meets_in_forward", [False, True])
def test_all_ranks_learn_how_long_each_takes_by_itself(gloo_pool: GlooPool, meets_in_forward: bool) -> None:
    results = gloo_pool.run(2, timed, [(0.0, 0.05), (0.1, 0.15)], meets_in_forward)
    for figures, paces in results:
        assert paces == results[0][1]
        assert [(pace.samples, pace.steps) for pace in paces] == [(5, 3), (6, 3)]
        assert [pace.data_s for pace in paces] == pytest.approx([0, 0.1])
        forward = [pace.own_s - pace.data_s for pace in paces]
        assert forward == pytest.approx([0, 0] if meets_in_forward else [0.05, 0.15])
        assert figures["throughput/samples_per_s"] == pytest.approx(44)
        assert figures["throughput/steps_per_s"] == pytest.approx(4)
    assert [figures["data/wait_fraction"] for figures, _ in results] == pytest.approx([0, 0.4])


def test_what_is_forgotten_does_not_count() -> None:
    clock = Clock()
    with patch.object(pace_module, "time", clock):
        watch = Stopwatch(CPU, meets_in_forward=False)
        watch.waits()
        clock.sleep(0.05)
        watch.has_batch(4)
        watch.embedded()
        watch.stepped(4)
        watch.restart()
        figures, (pace,) = watch.read(World())
    assert figures == {"throughput/samples_per_s": 0, "throughput/steps_per_s": 0, "data/wait_fraction": 0}
    assert pace == Pace(0, 0, 0, 0)
