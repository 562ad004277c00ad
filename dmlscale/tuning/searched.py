"""The searched keys of a sweep as axes: numbers, linear or logarithmic, or names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dmlscale.tuning.outcomes import Outcome, Scalar

_LOG_FROM = 10.0  # largest over smallest value


@dataclass(frozen=True)
class SearchedKey:
    """One key: of numbers or of names.

    Args:
        key: dotted, as `losses.margin`.
        numbers: distinct values, ascending, where all are numbers; otherwise empty.
        names: distinct values as text, by the alphabet, where not all are numbers; otherwise empty.
    """

    key: str
    numbers: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def is_log(self) -> bool:
        """Whether the numbers are positive and span more than a factor of 10."""
        return bool(self.numbers) and 0 < self.numbers[0] < self.numbers[-1] / _LOG_FROM

    @property
    def varies(self) -> bool:
        """Whether there are at least two values."""
        return len(self.numbers) + len(self.names) > 1

    def position(self, outcome: Outcome) -> float:
        """Where the trial's value lies.

        Returns:
            The number or its base-10 logarithm, or the name's place in `names`. NaN where the trial has no such key,
            since a conditional one is drawn for some trials only.
        """
        if self.key not in outcome.drawn:
            return math.nan
        value = outcome.drawn[self.key]
        if self.names:
            return float(self.names.index(name_of(value)))
        return self.scaled(value) if isinstance(value, int | float) else math.nan

    def scaled(self, number: float) -> float:
        """A number, or its base-10 logarithm where the key `is_log`."""
        return math.log10(number) if self.is_log else float(number)


def name_of(value: Scalar) -> str:
    """A value in short, as people write it in YAML: true, null, 0.001, triplet."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"
    return str(value)


def searched_keys(outcomes: Iterable[Outcome]) -> list[SearchedKey]:
    """All keys that any trial has, in the order in which they appear."""
    found: dict[str, list[Scalar]] = {}
    for outcome in outcomes:
        for key, value in outcome.drawn.items():
            found.setdefault(key, []).append(value)
    return [_searched_key(key, values) for key, values in found.items()]


def _searched_key(key: str, values: Sequence[Scalar]) -> SearchedKey:
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) == len(values):
        return SearchedKey(key, numbers=tuple(sorted(set(numbers))))
    return SearchedKey(key, names=tuple(sorted({name_of(value) for value in values})))
