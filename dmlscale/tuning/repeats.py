"""The mean over seeds, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from dmlscale.launch.errors import LaunchError

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Repeats:
    """A mean with its 95 % confidence interval by Student's t.

    Args:
        mean: of the values.
        half_width: half of the interval's width; None of a single value, which says nothing of its spread.
        n: number of values.
    """

    mean: float
    half_width: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0; without an interval it cannot be said."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:.4f} (one seed: no interval)"
        return f"{self.mean:.4f} \N{PLUS-MINUS SIGN} {self.half_width:.4f} (95 % of the mean, {self.n} seeds)"


def repeats(values: Sequence[float]) -> Repeats:
    """Mean and interval of one figure over seeds.

    Args:
        values: one of each seed.

    Returns:
        The mean with its interval, t(n - 1) times the standard error; no interval where there is one value.

    Raises:
        LaunchError: there are no values, or one is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        raise LaunchError(f"a mean over seeds needs finite values, at least one; got {list(values)}")
    n = len(values)
    if n == 1:
        return Repeats(float(values[0]), None, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    return Repeats(float(np.mean(values)), float(stdtrit(n - 1, (1 + _CONFIDENCE) / 2)) * error, n)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Repeats:
    """By how much the first config is above the second, compared seed by seed.

    Args:
        first: seed -> value.
        second: seed -> value. Seeds that only one of them has, as after a failure, do not count.

    Returns:
        Mean and interval of first minus second; `excludes_zero` says whether seeds alone can explain it.

    Raises:
        LaunchError: they have no seed in common.
    """
    shared = [seed for seed in first if seed in second]
    if not shared:
        raise LaunchError(f"no seed in common: {sorted(first)} and {sorted(second)}; use the same seeds for both")
    return repeats([first[seed] - second[seed] for seed in shared])
