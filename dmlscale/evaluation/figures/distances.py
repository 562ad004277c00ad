"""How close pairs of the same class and pairs of different classes are."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dmlscale.evaluation.figures.style import INK, MODEL, OTHER, panel, percent

HOW_TO_READ = (
    "The less the two hills overlap, the better one threshold tells pairs of the same class from pairs of different "
    "classes: it takes every pair to its right for the same class."
)


def distance_histogram(
    edges: NDArray[Any],
    same: NDArray[Any],
    different: NDArray[Any],
    *,
    threshold: float | None = None,
    closeness: str = "cosine similarity",
    eer: float | None = None,
    title: str = "Pairs of the same class and of different classes",
) -> Figure:
    """Draw both histograms over each other, each with an area of one.

    Args:
        edges: (b + 1,) of the bins, ascending; higher is closer.
        same: (b,) pairs of the same class in each bin.
        different: (b,) pairs of different classes in each bin.
        threshold: where a line is drawn; None or NaN draws none.
        closeness: name of the horizontal axis.
        eer: error rate at the threshold, equal for both kinds of pairs, in [0, 1].
        title: heading.

    Raises:
        ValueError: shapes that do not fit, or not one pair.
    """
    edges, same, different = (np.asarray(values, np.float64) for values in (edges, same, different))
    if not len(same) == len(different) == len(edges) - 1:
        raise ValueError(f"{len(edges)} edges, {len(same)} and {len(different)} bins: b bins have b + 1 edges")
    if not same.sum() + different.sum():
        raise ValueError("a histogram of closeness needs at least one pair")
    note = f"{same.sum():,.0f} pairs of the same class, {different.sum():,.0f} of different classes; equal areas."
    if eer is not None and not np.isnan(eer):
        note += f" At the threshold, {percent(eer)} of each kind are taken for the other (equal error rate)."
    figure, axes = panel(title, note)
    highest = 0.0
    for counts, colour, hatch in ((different, OTHER, "////"), (same, MODEL, "")):
        if counts.sum():
            density = counts / counts.sum() / np.diff(edges)
            highest = max(highest, float(density.max()))
            axes.stairs(density, edges, fill=True, facecolor=colour, alpha=0.22, hatch=hatch, edgecolor=colour, lw=0)
            axes.stairs(density, edges, color=colour, linewidth=1.8)
    filled = np.flatnonzero(same + different)
    low, high = edges[filled[0]], edges[filled[-1] + 1]
    axes.set(xlim=(low - 0.02 * (high - low), high + 0.02 * (high - low)), ylim=(0, 1.24 * highest), yticks=[])
    axes.set_xlabel(f"{closeness}  \N{RIGHTWARDS ARROW} closer")
    axes.set_ylabel("density of pairs")
    _name_hills(axes, edges, same, different)
    if threshold is not None and not np.isnan(threshold):
        _threshold(axes, threshold)
    return figure


def _name_hills(
    axes: Axes, edges: NDArray[np.float64], same: NDArray[np.float64], different: NDArray[np.float64]
) -> None:
    """Both names on one line above the hills, in the order in which these stand."""
    middles = (edges[1:] + edges[:-1]) / 2
    hills = [
        (float((counts * middles).sum() / counts.sum()), name, colour)
        for counts, name, colour in ((different, "different classes", OTHER), (same, "same class", MODEL))
        if counts.sum()
    ]
    left, right = axes.get_xlim()
    places = [(mean - left) / (right - left) for mean, _, _ in sorted(hills)]
    border = float(np.clip(np.mean(places), 0.3, 0.7))  # the left name ends before it, the right one begins behind it
    for number, (_, name, colour) in enumerate(sorted(hills)):
        low, high = (0.0, 1.0) if len(hills) == 1 else ((0.0, border), (border, 1.0))[number]
        half = 0.0105 * len(name)
        axes.text(
            float(np.clip(places[number], low + half, high - half)),
            0.885,
            name,
            transform=axes.transAxes,
            ha="center",
            va="bottom",
            size=10,
            weight="bold",
            color=colour,
        )


def _threshold(axes: Axes, threshold: float) -> None:
    low, high = axes.get_xlim()
    place = (threshold - low) / (high - low)
    if not 0 <= place <= 1:
        return
    axes.axvline(threshold, ymax=0.95, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    on_right = place < 0.6
    axes.annotate(
        f"threshold {threshold:.3f}",
        (threshold, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if on_right else 4, 0),
        textcoords="offset points",
        ha="left" if on_right else "right",
        va="bottom",
        size=8.5,
        color=INK,
    )
