"""How fast the run is, and how long each rank takes by itself.

In a step all ranks wait for the slowest, so its own time is what each does by itself: wait for its batch and embed it.
From then on ranks wait for each other, and a clock tells nothing. On a GPU events are put into its queue and read when
the figures are logged: no step waits for them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlscale.distributed import collectives
from dmlscale.distributed.world import World


@dataclass(frozen=True)
class Pace:
    """A rank's own time since the last reading.

    Args:
        data_s: mean seconds a step that it waited for its batch.
        own_s: mean seconds a step before it waited for others: ``data_s`` and the forward pass.
        samples: mean number of its samples a step.
        steps: since the last reading, the same on all ranks.
    """

    data_s: float
    own_s: float
    samples: float
    steps: int


class Stopwatch:
    """Times the steps of this rank.

    Args:
        device: of its model.
        meets_in_forward: whether ranks wait for each other within the forward pass (a model in shards, synchronized
            batch norm): it is then left out of the rank's own time.
    """

    def __init__(self, device: torch.device, *, meets_in_forward: bool) -> None:
        self._on_gpu, self._forward_counts = device.type == "cuda", not meets_in_forward
        self.restart()

    def restart(self) -> None:
        """Forgets what was timed, as after an evaluation."""
        self._since, self._data_s, self._forward_s = time.perf_counter(), 0.0, 0.0
        self._samples, self._all_samples, self._steps = 0, 0, 0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def waits(self) -> None:
        """The rank asks for its batch."""
        self._asked = time.perf_counter()

    def has_batch(self, samples: int) -> None:
        """The batch is there, with so many samples of this rank."""
        self._got = time.perf_counter()
        self._data_s += self._got - self._asked
        self._samples += samples
        if self._on_gpu and self._forward_counts:
            self._started = _event()

    def embedded(self) -> None:
        """The embeddings are there, or on a GPU asked for; the rank now meets the others."""
        if not self._forward_counts:
            return
        if self._on_gpu:
            self._events.append((self._started, _event()))
        else:
            self._forward_s += time.perf_counter() - self._got

    def stepped(self, samples: int) -> None:
        """The step is done, with so many samples in the global batch."""
        self._all_samples += samples
        self._steps += 1

    def read(self, world: World) -> tuple[dict[str, float], list[Pace]]:
        """Figures since the last reading, and each rank's pace; all ranks call this together.

        Communication: one all-gather of three float64.
        """
        elapsed = max(1e-9, time.perf_counter() - self._since)
        steps = max(1, self._steps)
        figures = {
            "throughput/samples_per_s": self._all_samples / elapsed,
            "throughput/steps_per_s": self._steps / elapsed,
            "data/wait_fraction": self._data_s / elapsed,
        }
        # Milliseconds; the step after them has been waited for, so they are through.
        forward_s = self._forward_s + sum(start.elapsed_time(end) for start, end in self._events) / 1000
        mine = [self._data_s / steps, (self._data_s + forward_s) / steps, self._samples / steps]
        local = torch.tensor([mine], dtype=torch.float64, device=collectives.collective_device(world))
        table: Tensor = collectives.gather_rows(local, [1] * world.num_ranks, world)
        paces = [Pace(data_s, own_s, samples, self._steps) for data_s, own_s, samples in table.tolist()]
        self.restart()
        return figures | imbalance(paces), paces


def imbalance(paces: Sequence[Pace]) -> dict[str, float]:
    """Figures of several ranks; none for one.

    `throughput/slowest_rank_s` is the longest own time a step. `throughput/imbalance` is how many times the median
    the longest is, both for as many samples: ranks with more streams than others have more to do.
    """
    if len(paces) < 2:
        return {}
    even = [s for s in for_equal_batches(paces) if s is not None]
    median = statistics.median(even) if even else 0.0
    return {
        "throughput/slowest_rank_s": max(pace.own_s for pace in paces),
        "throughput/imbalance": max(even) / median if median > 0 else 1.0,
    }


def for_equal_batches(paces: Sequence[Pace]) -> list[float | None]:
    """Own time a step of each rank if all had as many samples; None of a rank that had none."""
    mean = statistics.fmean(pace.samples for pace in paces)
    return [pace.own_s * mean / pace.samples if pace.samples else None for pace in paces]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
