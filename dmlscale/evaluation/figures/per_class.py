"""Recall@1 of every class, and the worst classes by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dmlscale.evaluation.figures.style import (
    BOTTOM,
    DPI,
    EDGE,
    FAINT,
    INK,
    LEFT,
    LINE,
    MODEL,
    WRONG,
    families,
    heading,
    percent,
    percent_ticks,
    plain,
    written,
)
from dmlscale.evaluation.figures.worst_classes import WorstClass

HOW_TO_READ = (
    "At the left all classes from the worst to the best: the longer the line stays at the bottom, the more classes are "
    "not found; at the right the worst ones, with the classes that their samples are taken for."
)
_WIDTH, _CURVE, _ROW, _NAMED = 10.4, 3.5, 0.36, 12


def per_class_recall(
    recalls: NDArray[Any],
    counts: NDArray[Any],
    names: Sequence[str],
    worst: Sequence[WorstClass],
    *,
    title: str = "Recall@1 of each class",
) -> Figure:
    """Draw Recall@1 over all classes, sorted, beside a table of the worst.

    Args:
        recalls: (C,) Recall@1 of each class, in [0, 1].
        counts: (C,) queries of each; classes without any are not shown.
        names: (C,) what the classes are called; written at the bars where there are few.
        worst: as from `worst_classes`; the first twelve are shown.
        title: heading.

    Raises:
        ValueError: no class with a query, or lengths that do not fit.
    """
    recalls, counts = np.asarray(recalls, np.float64), np.asarray(counts)
    if not len(recalls) == len(counts) == len(names):
        raise ValueError(f"{len(recalls)} recalls, {len(counts)} counts and {len(names)} names: must be one per class")
    shown = np.flatnonzero(counts > 0)
    if not len(shown):
        raise ValueError("Recall@1 of each class needs a class with a query")
    order = shown[np.argsort(recalls[shown], kind="stable")]
    worst = worst[:_NAMED]
    height = max(4.2, 1.75 + _ROW * len(worst))
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    top = heading(figure, title, _note(recalls[shown], counts[shown]))
    few = len(shown) <= _NAMED
    left = 1.9 if few else LEFT
    width = _CURVE + LEFT - left
    axes = figure.add_axes((left / _WIDTH, BOTTOM / height, width / _WIDTH, 1 - (BOTTOM + top + EDGE) / height))
    plain(axes)
    if few:
        _bars(axes, recalls[order], [names[place] for place in order])
    else:
        _curve(axes, recalls[order])
    _table(figure, worst, LEFT + _CURVE + 0.5, height - top - 0.08)
    return figure


def _note(recalls: NDArray[np.float64], counts: NDArray[Any]) -> str:
    whole, none = int((recalls == 1).sum()), int((recalls == 0).sum())
    return (
        f"{len(recalls):,} classes, {int(counts.sum()):,} queries. Every query is right in {whole:,} classes, "
        f"none in {none:,}. Median of the classes {percent(float(np.median(recalls)))}."
    )


def _curve(axes: Axes, recalls: NDArray[np.float64]) -> None:
    edges = np.linspace(0, 1, len(recalls) + 1)
    axes.stairs(recalls, edges, fill=True, color=MODEL, alpha=0.15)
    axes.stairs(recalls, edges, color=MODEL, linewidth=2, baseline=None)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    axes.set_xticks(np.linspace(0, 1, 5))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(percent_ticks())
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.set_xlabel("share of classes, worst first")
    axes.set_ylabel("Recall@1 of the class")


def _bars(axes: Axes, recalls: NDArray[np.float64], names: Sequence[str]) -> None:
    rows = np.arange(len(recalls))
    axes.barh(rows, recalls, height=0.62, color=MODEL, alpha=0.75)
    axes.plot(np.zeros(len(rows)), rows, "|", color=MODEL, markersize=12, markeredgewidth=2)  # a bar of 0 is seen too
    axes.set(xlim=(0, 1.02), ylim=(max(len(rows), 4) - 0.4, -0.6))
    axes.set_yticks(rows, [written(name, 20) for name in names], family=families(), parse_math=False)
    axes.set_xticks(np.linspace(0, 1, 5))
    axes.xaxis.set_major_formatter(percent_ticks())
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_xlabel("Recall@1")


def _table(figure: Figure, worst: Sequence[WorstClass], left: float, top: float) -> None:
    """The worst classes; ``left`` and ``top`` are inches from the lower left corner."""
    width, height = figure.get_size_inches()
    columns = (left, left + 2.55, left + 3.2, left + 3.35)

    def write(column: int, y: float, text: str, **style: Any) -> None:
        figure.text(
            columns[column] / width,
            y / height,
            text,
            ha="right" if column in (1, 2) else "left",
            va="center",
            family=families(),
            parse_math=False,
            **{"size": 8.5, "color": INK, **style},
        )

    if not worst:
        write(0, top - 0.2, "The nearest neighbour of every query is of its class.", size=9.5, color=FAINT)
        return
    for column, text in enumerate(("Worst classes", "Recall@1", "queries", "taken for (share of queries)")):
        write(column, top - 0.1, text, weight="bold")
    for number, row in enumerate(worst):
        y = top - 0.42 - number * _ROW
        write(0, y, written(row.name, 27))
        write(1, y, percent(row.recall), color=WRONG, weight="bold")
        write(2, y, f"{row.count:,}")
        confused = [f"{written(name, 24)}  {percent(share)}" for name, share in row.confused_with[:2]]
        write(3, y, "\n".join(confused), size=7.5, color=FAINT, linespacing=1.15)
