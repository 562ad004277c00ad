"""ROC of verification: how many pairs of the same class are accepted, for how many false ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dmlscale.evaluation.figures.style import FAINT, INK, MODEL, OTHER, panel, percent, percent_ticks

HOW_TO_READ = (
    "The farther up and left the line runs, the better: at each share of different pairs that are wrongly accepted "
    "(to the left are fewer), it tells how many pairs of the same class are rightly accepted."
)


def roc_curve(
    far: NDArray[Any],
    tar: NDArray[Any],
    *,
    auc: float,
    eer: float | None = None,
    marked: Mapping[float, float] | None = None,
    title: str = "Verification: is this pair of the same class?",
) -> Figure:
    """Draw the true accept rate over the false accept rate, whose axis is logarithmic.

    Args:
        far: (p,) false accept rates in [0, 1], ascending; points at 0 have no place on the axis.
        tar: (p,) true accept rates.
        auc: area under the curve with both axes linear.
        eer: equal error rate, at which FAR = 1 - TAR.
        marked: FAR -> TAR, to be written at the curve.
        title: heading.

    Raises:
        ValueError: shapes that do not fit, or no point with a positive FAR.
    """
    far, tar = np.asarray(far, np.float64), np.asarray(tar, np.float64)
    marked = dict(marked or {})
    if far.shape != tar.shape or not (far > 0).any():
        raise ValueError(f"far {far.shape} and tar {tar.shape} must be (p,), with a false accept rate above 0")
    note = f"Area under the curve {auc:.4f} with linear axes: 1 is perfect, 0.5 is chance."
    figure, axes = panel(title, note)
    low = min([float(far[far > 0].min()), 0.1, *(rate for rate in marked if rate > 0)])
    chance = np.geomspace(low, 1, 200)
    axes.plot(chance, chance, color=FAINT, linewidth=1, linestyle=(0, (1, 2)))
    axes.annotate("chance", (0.25, 0.25), xytext=(4, -4), textcoords="offset points", size=8.5, color=FAINT, va="top")
    # What is accepted at no false pair at all stays accepted up to the first positive rate.
    at_low = float(np.interp(low, far, tar))
    shown = far > low
    axes.plot([low, *far[shown]], [at_low, *tar[shown]], color=MODEL, linewidth=2)
    axes.set_xscale("log")
    axes.set(xlim=(low * 0.85, 1.15), ylim=(0, 1.09))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_xlabel("false accept rate (FAR): different pairs taken for the same class")
    axes.set_ylabel("true accept rate (TAR)")
    for rate, value in marked.items():
        _point(axes, rate, value, percent(value), "o", MODEL, below=True)
    if eer is not None and not np.isnan(eer) and eer > 0:
        _point(axes, max(eer, low), 1 - eer, f"EER {percent(eer)}", "D", OTHER, below=False)
    return figure


def _point(axes: Axes, x: float, y: float, text: str, marker: str, colour: str, *, below: bool) -> None:
    right = below and y > 0.1  # at the bottom there is no room below
    axes.plot([x], [y], marker=marker, color=colour, markersize=7, markeredgecolor="white", linestyle="none", zorder=4)
    axes.annotate(
        text,
        (x, y),
        xytext=(5, -7) if right else (-6, 6),
        textcoords="offset points",
        ha="left" if right else "right",
        va="top" if right else "bottom",
        size=9,
        weight="bold",
        color=INK,
    )
