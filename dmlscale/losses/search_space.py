"""Ranges that hyper-parameters are searched in; a loss names its own in `search_space`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Uniform:
    """Any number of an interval, each equally likely.

    Args:
        low: smallest value.
        high: largest value.

    Raises:
        ValueError: a bound is no finite number, or low is not below high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_interval(self.low, self.high)

    def __str__(self) -> str:
        return f"uniform [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class LogUniform:
    """Any number of an interval, each ratio equally likely: for learning rates, scales and temperatures.

    Args:
        low: smallest value, above zero.
        high: largest value.

    Raises:
        ValueError: a bound is no finite number or not positive, or low is not below high.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_interval(self.low, self.high)
        _require_positive(self.low)

    def __str__(self) -> str:
        return f"log_uniform [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Integer:
    """Any whole number of an interval, both ends included.

    Args:
        low: smallest value.
        high: largest value.
        log: each ratio is equally likely, not each number.

    Raises:
        ValueError: a bound is no whole number, low is not below high, or log is on and low is not positive.
    """

    low: int
    high: int
    log: bool = False

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if not isinstance(bound, int):
                raise ValueError(f"bounds must be whole numbers, got {bound!r}")
        _require_interval(self.low, self.high)
        if self.log:
            _require_positive(self.low)

    def __str__(self) -> str:
        return f"int [{self.low}, {self.high}]{' log' * self.log}"


@dataclass(frozen=True)
class Choice:
    """One of a few values, of any kind.

    Args:
        values: at least one, all different.

    Raises:
        ValueError: there are no values, or one stands there twice.
    """

    values: Sequence[Any]

    def __post_init__(self) -> None:
        if isinstance(self.values, str) or not isinstance(self.values, Sequence):
            raise ValueError(f"choices must be a list, got {self.values!r}")
        if not self.values:
            raise ValueError("needs at least one choice")
        # 1 == True == 1.0 in Python, and whoever searches could not tell them apart.
        for place, value in enumerate(self.values):
            if value in self.values[:place]:
                raise ValueError(f"the choice {value!r} stands there twice")
        object.__setattr__(self, "values", tuple(self.values))

    def __str__(self) -> str:
        # Truth is written as in YAML.
        return f"choice [{', '.join(str(v).lower() if isinstance(v, bool) else str(v) for v in self.values)}]"


Range = Uniform | LogUniform | Integer | Choice

# Hyper-parameter -> where to search it.
SearchSpace = Mapping[str, Range]


def _require_interval(low: float, high: float) -> None:
    for bound in (low, high):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise ValueError(f"bounds must be finite numbers, got {bound!r}")
    if not low < high:
        raise ValueError(f"the low end {low} must be below the high end {high}")


def _require_positive(low: float) -> None:
    if not low > 0:
        raise ValueError(f"the low end of a range of ratios must be above zero, got {low}")
