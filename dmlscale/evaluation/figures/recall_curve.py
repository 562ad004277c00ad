"""Recall@K over K."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dmlscale.evaluation.figures.style import FAINT, INK, MODEL, panel, percent, percent_ticks

HOW_TO_READ = (
    "Recall@K is the share of queries with a sample of their class among the K nearest: the higher the line the "
    "better, and its distance from the line of the raw pixels is what the model has learnt."
)


def recall_curve(
    ks: Sequence[int],
    recalls: Sequence[float],
    *,
    intervals: Sequence[tuple[float, float]] | None = None,
    baseline: Sequence[float] | None = None,
    title: str = "Recall@K",
) -> Figure:
    """Draw Recall@K, with the raw pixels' as a second line.

    Args:
        ks: ascending, each at least 1.
        recalls: of each k, in [0, 1].
        intervals: 95 % interval of each, NaN where there is none.
        baseline: the raw pixels' recalls.
        title: heading.

    Raises:
        ValueError: no k, or lengths that do not fit.
    """
    others = [values for values in (intervals, baseline) if values is not None]
    if not ks or any(len(values) != len(ks) for values in (recalls, *others)):
        raise ValueError(f"{len(ks)} ks need as many recalls, intervals and baselines, and at least one")
    note = "Share of queries with a sample of their class among the K nearest"
    note += "; the band is the 95 % interval." if intervals is not None else "."
    figure, axes = panel(title, note)
    places = np.log2(ks)
    if intervals is not None:
        low, high = np.asarray(intervals, np.float64).T
        axes.fill_between(places, low, high, color=MODEL, alpha=0.18, linewidth=0)
        if len(ks) == 1:
            axes.vlines(places, low, high, color=MODEL, alpha=0.4, linewidth=6)
    low, high = _limits([*recalls, *(baseline or ()), *np.ravel(intervals or ())])
    span = max(1.0, places[-1] - places[0])
    axes.set(xlim=(places[0] - 0.06 * span, places[-1] + 0.2 * span), ylim=(low, high))
    if baseline is None:
        _line(axes, places, recalls, "this model", MODEL, above=True, shift=0)
    else:
        above = recalls[-1] >= baseline[-1]
        is_near = abs(recalls[-1] - baseline[-1]) < 0.06 * (high - low)
        shift = (6 if is_near else 0) * (1 if above else -1)
        _line(axes, places, baseline, "raw pixels", FAINT, above=not above, shift=-shift)
        _line(axes, places, recalls, "this model", MODEL, above=above, shift=shift)
    axes.set_xticks(places, [f"{k:,}" for k in ks])
    ticks = MaxNLocator(6).tick_values(max(0.0, low), min(1.0, high))
    axes.set_yticks([tick for tick in ticks if low <= tick <= min(1.0, high)])
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_xlabel("K, number of nearest neighbours")
    axes.set_ylabel("Recall@K")
    return figure


def _line(
    axes: Axes,
    places: NDArray[np.float64],
    values: Sequence[float],
    name: str,
    colour: str,
    *,
    above: bool,
    shift: float,
) -> None:
    """A line with its values at the points and its name at the end, ``shift`` points higher."""
    is_model = colour == MODEL
    axes.plot(
        places,
        values,
        color=colour,
        marker="o" if is_model else "s",
        markersize=6,
        linewidth=2,
        linestyle="solid" if is_model else (0, (4, 2)),
    )
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            percent(value),
            (place, value),
            xytext=(0, 8 if above else -8),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            size=8.5,
            color=INK if is_model else FAINT,
        )
    axes.annotate(
        name,
        (places[-1], values[-1]),
        xytext=(20, shift),
        textcoords="offset points",
        va="center",
        size=9.5,
        weight="bold",
        color=colour,
    )


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """What the vertical axis shows: at least a tenth, with room for the numbers at the points."""
    finite = [value for value in values if np.isfinite(value)]
    low, high = min(finite), max(finite)
    middle, span = (low + high) / 2, max(0.1, high - low)
    return max(-0.04, middle - 0.68 * span), middle + 0.68 * span
