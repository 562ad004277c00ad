"""When to step, log, evaluate, save and stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dmlscale.data.loader import Position, TrainStream
from dmlscale.distributed.collectives import max_over_ranks
from dmlscale.distributed.fully_sharded import held_here
from dmlscale.training.step import Trainee, train_step

# Steps between two looks at whether a stop was asked for; all ranks must learn of it at the same step.
STOP_CHECK_EVERY = 5


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Rhythm:
    """How long the run is and what happens every so many steps; 0 is never."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; every rank calls each of them at the same step.

    Args:
        log: (step, metrics, position of the batch of this step).
        evaluate: (step), with the model as it is.
        save: (step, state of the data stream).
        stop_asked: whether someone asked the run to stop; asked on every rank, answered by any.
        phase: (steps done, what this rank does now: "data", "step", "save" or "evaluation"), for whoever watches it.
    """

    log: Callable[[int, dict[str, float], Position], None]
    evaluate: Callable[[int], None]
    save: Callable[[int, dict[str, int]], None]
    stop_asked: Callable[[], bool]
    phase: Callable[[int, str], None] = lambda step, phase: None


@dataclass(frozen=True)
class End:
    """How the loop ended."""

    step: int
    was_stopped: bool


def run_loop(
    trainee: Trainee, stream: TrainStream, rhythm: Rhythm, hooks: Hooks, start: int, device: torch.device
) -> End:
    """Trains from step ``start`` (0 for a new run) to the end, or until a stop is asked for.

    The last step is always saved, so is a stopped one. Evaluation at the end is the caller's.

    Raises:
        DivergedError: the loss is not finite.
    """
    meter = _Meter()
    position = Position(**stream.state_dict())
    trainee.model.train()
    for step in range(start, rhythm.steps):
        hooks.phase(step, "data")
        waited = time.perf_counter()
        following, batch = next(stream)
        meter.waited(time.perf_counter() - waited)
        hooks.phase(step, "step")
        loss, terms = train_step(trainee, batch.to(device), step)
        meter.stepped(len(stream.global_ids(position)))
        done = step + 1
        if done % rhythm.log_every == 0 or done == rhythm.steps:
            metrics = {"train/loss": _finite(loss, done)}
            metrics |= {f"train/{name}": float(v) for name, v in (terms | trainee.objective.metrics()).items()}
            metrics |= {f"train/lr_{group['name']}": float(group["lr"]) for group in trainee.optimizer.param_groups}
            hooks.log(done, metrics | meter.read(), position)
        position = following
        is_last = done == rhythm.steps
        is_due = is_last or done % rhythm.checkpoint_every == 0
        is_stopped = not is_last and done % STOP_CHECK_EVERY == 0 and _any_rank(hooks.stop_asked(), trainee, device)
        if is_due or is_stopped:
            _finite(loss, done)  # a run must not resume from nan
            _require_finite_parameters(trainee, done, device)
            hooks.phase(done, "save")
            hooks.save(done, stream.state_dict())
        if is_stopped:
            return End(done, was_stopped=True)
        if rhythm.eval_every and done % rhythm.eval_every == 0 and not is_last:
            hooks.phase(done, "evaluation")
            hooks.evaluate(done)
            trainee.model.train()
            meter.restart()
    return End(max(start, rhythm.steps), was_stopped=False)


def _finite(loss: torch.Tensor, step: int) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise DivergedError(f"the loss is {value} at step {step}: lower the learning rates")
    return value


def _require_finite_parameters(trainee: Trainee, step: int, device: torch.device) -> None:
    """On all ranks alike: banks and shards differ, and a rank that raised alone would leave the others waiting."""
    parameters = [*trainee.model.parameters(), *trainee.objective.parameters()]
    broken = any(not bool(torch.isfinite(held_here(p)).all()) for p in parameters)
    if _any_rank(broken, trainee, device):
        raise DivergedError(f"a parameter is not finite at step {step}: lower the learning rates")


def _any_rank(asked: bool, trainee: Trainee, device: torch.device) -> bool:
    if trainee.world.num_ranks == 1:
        return asked
    return bool(max_over_ranks(torch.tensor([float(asked)], device=device), trainee.world))


class _Meter:
    """Throughput and waiting since the last reading."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._since, self._waited, self._samples, self._steps = time.perf_counter(), 0.0, 0, 0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def stepped(self, samples: int) -> None:
        self._samples += samples
        self._steps += 1

    def read(self) -> dict[str, float]:
        elapsed = max(1e-9, time.perf_counter() - self._since)
        reading = {
            "throughput/samples_per_s": self._samples / elapsed,
            "throughput/steps_per_s": self._steps / elapsed,
            "data/wait_fraction": self._waited / elapsed,
        }
        self.restart()
        return reading
