"""When to step, log, evaluate, save and stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dmlscale.data.loader import Position, TrainStream
from dmlscale.distributed.collectives import max_over_ranks
from dmlscale.distributed.fully_sharded import held_here, needs_all_ranks
from dmlscale.training.nonfinite import NotFiniteError, SkippedStep, describe
from dmlscale.training.pace import Pace, Stopwatch
from dmlscale.training.step import Trainee, train_step

# Steps between two looks at whether a stop was asked for; all ranks must learn of it at the same step.
STOP_CHECK_EVERY = 5


class DivergedError(RuntimeError):
    """The loss or a parameter is no longer a finite number."""


def _skip_none(skipped: SkippedStep) -> None:
    raise DivergedError(f"step {skipped.step}: the loss is {skipped.loss}, or a gradient is not finite")


@dataclass(frozen=True)
class Rhythm:
    """How long the run is and what happens every so many steps; 0 is never."""

    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    save_evaluated: bool = False  # also save where an evaluation follows


@dataclass(frozen=True)
class Hooks:
    """What the loop calls; every rank calls each of them at the same step.

    Args:
        log: (step, metrics, position of the batch of this step).
        evaluate: (step), with the model as it is.
        save: (step, state of the data stream).
        stop_asked: whether someone asked the run to stop; asked on every rank, answered by any.
        save_due: likewise, whether it is time to save between the steps of the rhythm.
        save_failed: likewise, whether the last checkpoint could not be written, as far as this rank knows.
        settle: called where some rank knows that.
        phase: (steps done, what this rank does now: "data", "step", "save" or "evaluation"), for whoever watches it.
        skip: takes a step that was not made, as its loss or gradient is not finite. Raises where the run must end, on
            all ranks alike; without this hook the first one ends it.
        look_at_paces: takes each rank's pace, after each log.
    """

    log: Callable[[int, dict[str, float], Position], None]
    evaluate: Callable[[int], None]
    save: Callable[[int, dict[str, int]], None]
    stop_asked: Callable[[], bool]
    save_due: Callable[[], bool] = lambda: False
    save_failed: Callable[[], bool] = lambda: False
    settle: Callable[[], None] = lambda: None
    phase: Callable[[int, str], None] = lambda step, phase: None
    skip: Callable[[SkippedStep], None] = _skip_none
    look_at_paces: Callable[[Sequence[Pace]], None] = lambda paces: None


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
        DivergedError: a parameter is not finite, or more losses or gradients than may be (`Hooks.skip`).
    """
    watch = Stopwatch(device, meets_in_forward=needs_all_ranks(trainee.model))
    position = Position(**stream.state_dict())
    trainee.model.train()
    for step in range(start, rhythm.steps):
        hooks.phase(step, "data")
        watch.waits()
        following, batch = next(stream)
        watch.has_batch(len(batch.ids))
        hooks.phase(step, "step")
        batch, done = batch.to(device), step + 1
        figures: dict[str, torch.Tensor] = {}
        try:
            loss, terms = train_step(trainee, batch, step, watch.embedded)
            figures = {"loss": loss} | terms
        except NotFiniteError as error:
            place = (done, *position)
            hooks.skip(describe(error, trainee.model, trainee.objective, batch, place, trainee.world))
        watch.stepped(len(stream.global_ids(position)))
        if done % rhythm.log_every == 0 or done == rhythm.steps:
            metrics = {f"train/{name}": float(v) for name, v in (figures | trainee.objective.metrics()).items()}
            metrics |= {f"train/lr_{group['name']}": float(group["lr"]) for group in trainee.optimizer.param_groups}
            throughput, paces = watch.read(trainee.world)
            hooks.log(done, metrics | throughput, position)
            hooks.look_at_paces(paces)
        position = following
        is_last = done == rhythm.steps
        is_evaluated = not is_last and rhythm.eval_every > 0 and done % rhythm.eval_every == 0
        is_due = is_last or done % rhythm.checkpoint_every == 0 or (is_evaluated and rhythm.save_evaluated)
        is_stopped = False
        if not is_last and done % STOP_CHECK_EVERY == 0:
            asked = (hooks.stop_asked(), hooks.save_due(), hooks.save_failed())
            is_stopped, is_asked_for, is_lost = _any_rank(asked, trainee, device)
            is_due = is_due or is_asked_for
            if is_lost:
                hooks.settle()
        if is_due or is_stopped or is_evaluated:
            _require_finite_parameters(trainee, done, device)
        if is_due or is_stopped:
            hooks.phase(done, "save")
            hooks.save(done, stream.state_dict())
        if is_stopped:
            return End(done, was_stopped=True)
        if is_evaluated:
            hooks.phase(done, "evaluation")
            hooks.evaluate(done)
            trainee.model.train()
            watch.restart()
    return End(max(start, rhythm.steps), was_stopped=False)


def _require_finite_parameters(trainee: Trainee, step: int, device: torch.device) -> None:
    """On all ranks alike: banks and shards differ, and a rank that raised alone would leave the others waiting.

    The loss of each step was finite, but its update may not be; and a run must not resume from nan.
    """
    parameters = [*trainee.model.parameters(), *trainee.objective.parameters()]
    broken = any(not bool(torch.isfinite(held_here(p)).all()) for p in parameters)
    if _any_rank([broken], trainee, device)[0]:
        raise DivergedError(f"a parameter is not finite at step {step}: lower the learning rates")


def _any_rank(asked: Sequence[bool], trainee: Trainee, device: torch.device) -> list[bool]:
    """Of each question, whether any rank says yes."""
    if trainee.world.num_ranks == 1:
        return list(asked)
    answers = torch.tensor(asked, dtype=torch.float32, device=device)
    return [answer > 0 for answer in max_over_ranks(answers, trainee.world).tolist()]
