"""How numbers are written on figures of a sweep, and where labels go so that none hides another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from matplotlib.figure import Figure

from dmlscale.evaluation.figures.style import FAINT, families, panel
from dmlscale.tuning.searched import SearchedKey

_MOST_VALUES = 5  # that get a tick each
_LEAST_GAP = 0.1  # between two ticks, of the axis' length


def number(value: float) -> str:
    """Three digits: 0.0005, 0.612, 1,250, 3e-6."""
    text = f"{value:.3g}"
    if "e" not in text:
        return text
    if 1 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    digits, exponent = text.split("e")
    return f"{digits}e{int(exponent)}"


def short_trial(name: str) -> str:
    """A trial's name as labels show it; its end tells it from others."""
    return name if len(name) <= 14 else f"\N{HORIZONTAL ELLIPSIS}{name[-13:]}"


def number_ticks(key: SearchedKey) -> list[tuple[float, str]]:
    """Where an axis of numbers is labelled: at each value if they are few, else at both ends and between.

    Returns:
        (position as in `SearchedKey.position`, text), ascending.
    """
    ends = key.scaled(key.numbers[0]), key.scaled(key.numbers[-1])
    span = ends[1] - ends[0]
    each = [(key.scaled(value), number(value)) for value in key.numbers[: _MOST_VALUES + 1]]
    gaps = [after[0] - before[0] for before, after in pairwise(each)]
    if len(key.numbers) <= _MOST_VALUES and all(gap >= _LEAST_GAP * span for gap in gaps):
        return each
    whole = all(value.is_integer() for value in key.numbers)
    found = {}
    for part in range(4):
        position = ends[0] + span * part / 3
        value = 10**position if key.is_log else position
        if whole:
            value = max(round(value), 1) if key.is_log else round(value)
        found[number(value)] = key.scaled(value)
    return [(position, text) for text, position in found.items()]


def apart(positions: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Moves labels so that neighbours are a gap apart, and as little as that needs.

    Args:
        positions: where each would best be.
        gap: least distance.
        low: least place.
        high: largest place. With more labels than fit, they go on beyond `low`.

    Returns:
        The places, in the order of `positions`.
    """
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    places = [max(low, min(high, positions[i])) for i in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if places and places[-1] > high:
        places[-1] = high
        for i in range(len(places) - 2, -1, -1):
            places[i] = min(places[i], places[i + 1] - gap)
    found = dict(zip(order, places, strict=True))
    return [found[i] for i in range(len(positions))]


def nothing(title: str, reason: str) -> Figure:
    """A figure that says why there is nothing to see."""
    figure, axes = panel(title, "", height=2.0)
    axes.set_axis_off()
    axes.text(
        0.5,
        0.6,
        reason,
        ha="center",
        va="center",
        size=10,
        color=FAINT,
        wrap=True,
        family=families(),
        parse_math=False,
        transform=axes.transAxes,
    )
    return figure
