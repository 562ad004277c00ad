"""When the loop logs, saves and stops where steps are skipped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from dmlscale.data.loader import Position, TrainStream
from dmlscale.data.types import Batch
from dmlscale.distributed.world import World
from dmlscale.training.loop import DivergedError, Hooks, Rhythm, run_loop
from dmlscale.training.nonfinite import SkippedStep
from dmlscale.training.pace import Pace
from tests.distributed.pool import GlooPool
from tests.training.test_accumulate import samples
from tests.training.test_nonfinite import BAD_SAMPLE, STEPS, Way, make

EPOCH = 3  # steps


@dataclass
class Stream:
    """The same samples in each step, one of them broken in some."""

    world: World
    bad: tuple[int, ...]
    at: Position = field(default_factory=lambda: Position(0, 0))

    def __next__(self) -> tuple[Position, Batch]:
        step = self.at.epoch * EPOCH + self.at.step
        images, labels, ids, mine = samples(self.world, {0: 5, 1: 4, 2: 4})
        images = images + step / 10
        if step in self.bad:
            images[ids == BAD_SAMPLE] = math.inf
        self.at = Position((step + 1) // EPOCH, (step + 1) % EPOCH)
        return self.at, Batch(images, labels, ids, mine)

    def state_dict(self) -> dict[str, int]:
        return self.at._asdict()

    def global_ids(self, position: Position) -> np.ndarray[Any, Any]:
        return np.arange(13)


@dataclass
class Told:
    """What the loop's hooks were told, by step."""

    logged: dict[int, dict[str, float]] = field(default_factory=dict)
    saved: list[int] = field(default_factory=list)
    skipped: list[SkippedStep] = field(default_factory=list)
    paces: list[Sequence[Pace]] = field(default_factory=list)
    parameters: list[torch.Tensor] = field(default_factory=list)


def trained(world: World, bad: tuple[int, ...], with_hook: bool = True) -> Told:
    told, trainee = Told(), make(world, Way("reproducible"))
    hooks = Hooks(
        log=lambda step, metrics, position: told.logged.update({step: metrics}),
        evaluate=lambda step: None,
        save=lambda step, state: told.saved.append(step),
        stop_asked=lambda: False,
        look_at_paces=told.paces.append,
    )
    hooks = replace(hooks, skip=told.skipped.append) if with_hook else hooks
    rhythm = Rhythm(STEPS, 1, eval_every=0, checkpoint_every=2)
    end = run_loop(trainee, cast(TrainStream, Stream(world, bad)), rhythm, hooks, 0, torch.device("cpu"))
    assert end.step == STEPS
    told.parameters = [p.detach().clone() for p in trainee.model.parameters()]
    return told


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_skipped_step_counts_as_done(gloo_pool: GlooPool, num_ranks: int) -> None:
    for told in gloo_pool.run(num_ranks, trained, (1, 4)):
        assert list(told.logged) == [1, 2, 3, 4, 5]
        for step, metrics in told.logged.items():
            assert ("train/loss" in metrics) == (step not in (2, 5))
            assert all(math.isfinite(value) for value in metrics.values())
        assert told.saved == [2, 4, 5]
        assert [(s.step, s.epoch, s.step_of_epoch) for s in told.skipped] == [(2, 0, 1), (5, 1, 1)]
        assert [len(paces) for paces in told.paces] == [num_ranks] * STEPS


def test_a_run_without_broken_samples_skips_nothing(gloo_pool: GlooPool) -> None:
    (sound,) = gloo_pool.run(1, trained, ())
    assert not sound.skipped
    assert all("train/loss" in metrics for metrics in sound.logged.values())


def test_without_the_hook_the_first_one_ends_the_run() -> None:
    with pytest.raises(DivergedError, match=r"step 2: the loss is nan"):
        trained(World(), (1, 4), with_hook=False)


@pytest.mark.parametrize(("eval_every", "checkpoint_every"), [(0, 1), (1, STEPS)])
def test_parameters_that_are_not_finite_are_never_saved_nor_evaluated(eval_every: int, checkpoint_every: int) -> None:
    trainee = make(World(), Way())
    used: list[int] = []
    for group in trainee.optimizer.param_groups:
        group["peak_lr"] = math.inf  # the gradient is finite, its step is not
    hooks = Hooks(
        log=lambda step, metrics, position: None,
        evaluate=used.append,
        save=lambda step, state: used.append(step),
        stop_asked=lambda: False,
    )
    rhythm = Rhythm(STEPS, 1, eval_every, checkpoint_every)
    with pytest.raises(DivergedError, match=r"a parameter is not finite at step 1"):
        run_loop(trainee, cast(TrainStream, Stream(World(), ())), rhythm, hooks, 0, torch.device("cpu"))
    assert not used
