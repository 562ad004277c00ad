"""What became of each trial of a sweep, and which of them are best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from dmlscale.launch.errors import LaunchError

Scalar = bool | int | float | str | None
Mode = Literal["max", "min"]
Status = Literal["finished", "stopped", "failed", "running", "pending"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One trial.

    Args:
        trial: its name, unique within the sweep.
        status: `stopped` is ended early by the scheduler, `failed` is ended by an error.
        reason: of a stop or failure; empty otherwise.
        drawn: searched key -> value, as `losses.margin` -> 0.2. Trials may have different keys.
        curve: (step, metrics) of each report, steps ascending.
        seconds: time it has trained.
        run_id: its run in the tracker.
        folder: its run's folder.

    Raises:
        LaunchError: the status is none of those, or the steps do not ascend.
    """

    trial: str
    status: Status
    reason: str = ""
    drawn: Mapping[str, Scalar]
    curve: tuple[tuple[int, Mapping[str, float]], ...] = ()
    seconds: float = 0.0
    run_id: str = ""
    folder: str = ""

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise LaunchError(f"trial {self.trial}: status {self.status!r} is none of {', '.join(get_args(Status))}")
        steps = [step for step, _ in self.curve]
        if any(later <= earlier for earlier, later in pairwise(steps)):
            raise LaunchError(f"trial {self.trial}: steps of its curve must ascend, got {steps}")

    @property
    def steps(self) -> int:
        """Steps trained up to the last report; 0 without any."""
        return self.curve[-1][0] if self.curve else 0

    @property
    def metrics(self) -> Mapping[str, float]:
        """Those of the last report."""
        return self.curve[-1][1] if self.curve else {}

    def value(self, metric: str) -> float:
        """The metric in the last report that has it; NaN where none does."""
        return next((metrics[metric] for _, metrics in reversed(self.curve) if metric in metrics), math.nan)

    def best_value(self, metric: str, mode: Mode) -> float:
        """The best finite value of the metric in any report; NaN where there is none."""
        values = [metrics[metric] for _, metrics in self.curve if math.isfinite(metrics.get(metric, math.nan))]
        return (max if mode == "max" else min)(values, default=math.nan)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; NaN and infinities in the curve become text, which JSON can hold."""
        curve = [[step, {name: _plain(value) for name, value in metrics.items()}] for step, metrics in self.curve]
        return asdict(self) | {"drawn": dict(self.drawn), "curve": curve}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Outcome:
        """The inverse of `to_json`.

        Raises:
            LaunchError: a key is missing, unknown, or its value is not what `to_json` writes.
        """
        try:
            curve = tuple(
                (int(step), {name: float(value) for name, value in metrics.items()})
                for step, metrics in values["curve"]
            )
            return cls(**{**values, "curve": curve, "drawn": dict(values["drawn"])})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            trial = values.get("trial", "?") if isinstance(values, Mapping) else "?"
            raise LaunchError(f"trial {trial}: not the outcome of a trial as a sweep writes it: {error!r}") from None


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def with_value(outcomes: Iterable[Outcome], metric: str) -> list[Outcome]:
    """Those that count: not failed, and the metric is a finite number."""
    return [outcome for outcome in outcomes if outcome.status != "failed" and math.isfinite(outcome.value(metric))]


def ranked(outcomes: Iterable[Outcome], metric: str, mode: Mode) -> list[Outcome]:
    """Those that count, best first; equal ones as they were given."""
    sign = -1 if mode == "max" else 1
    return sorted(with_value(outcomes, metric), key=lambda outcome: sign * outcome.value(metric))


def best(outcomes: Iterable[Outcome], metric: str, mode: Mode) -> Outcome | None:
    """The trial with the best last value; None where no trial counts."""
    return next(iter(ranked(outcomes, metric, mode)), None)


def pareto(outcomes: Iterable[Outcome], modes: Mapping[str, Mode]) -> list[Outcome]:
    """Trials that no other one beats in all objectives at once.

    Args:
        outcomes: trials; those that failed or lack an objective do not count.
        modes: objective -> whether more or less of it is better.

    Returns:
        Non-dominated trials, the best in the first objective first. Equal ones are all in.

    Raises:
        LaunchError: there is no objective.
    """
    if not modes:
        raise LaunchError("a Pareto front needs at least one objective")
    counted: Sequence[Outcome] = list(outcomes)
    for metric in modes:
        counted = with_value(counted, metric)
    signs = [1 if mode == "max" else -1 for mode in modes.values()]
    values = np.array([[sign * o.value(m) for sign, m in zip(signs, modes, strict=True)] for o in counted])
    front = [
        outcome
        for outcome, own in zip(counted, values, strict=True)
        if not ((values >= own).all(axis=1) & (values > own).any(axis=1)).any()
    ]
    first, mode = next(iter(modes.items()))
    return ranked(front, first, mode)
