"""Two objectives against each other, and the trials that no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from dmlscale.evaluation.figures.style import FAINT, INK, MODEL, PALE, families, panel
from dmlscale.tuning.figures.labels import nothing, number, short_trial
from dmlscale.tuning.outcomes import Mode, Outcome, pareto, with_value

_LOG_FROM = 10.0  # largest over smallest value
_LABEL = 0.24, 0.05  # share of the axes that a label takes: to the side, and upwards
_BETTER = {("max", "x"): "right", ("min", "x"): "left", ("max", "y"): "top", ("min", "y"): "bottom"}


def pareto_front(outcomes: Sequence[Outcome], x: tuple[str, Mode], y: tuple[str, Mode]) -> Figure:
    """All trials by two metrics; those on the front are joined and named.

    Args:
        outcomes: trials; those that failed or lack one of the metrics are left out.
        x: metric across, and whether more or less of it is better.
        y: metric upwards, and the same of it.

    Returns:
        A figure of 100 dots per inch. An axis is logarithmic where its values span more than a factor of 10.
    """
    title = f"{y[0]} against {x[0]}"
    shown = with_value(with_value(outcomes, x[0]), y[0])
    if not shown:
        return nothing(title, f"No trial has reported both {x[0]} and {y[0]}.")
    front = sorted(pareto(shown, dict((x, y))), key=lambda outcome: outcome.value(x[0]))
    others = [outcome for outcome in shown if outcome not in front]
    corner = f"{_BETTER[y[1], 'y']} {_BETTER[x[1], 'x']}"
    note = f"A dot is a trial; best is {corner}. Blue ({len(front)}): none is better in one and no worse in the other."
    figure, axes = panel(title, note, width=7.6, height=5.0)
    axes.set_xlabel(f"{x[0]}  ({'more' if x[1] == 'max' else 'less'} is better)")
    axes.set_ylabel(f"{y[0]}  ({'more' if y[1] == 'max' else 'less'} is better)")
    for metric, axis in ((x[0], axes.xaxis), (y[0], axes.yaxis)):
        values = [outcome.value(metric) for outcome in shown]
        if 0 < min(values) < max(values) / _LOG_FROM:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.plot([o.value(x[0]) for o in others], [o.value(y[0]) for o in others], "o", color=PALE, markersize=5)
    # The best that is attained with at most (or at least) so much across.
    steps = "steps-post" if x[1] == "min" else "steps-pre"
    across, up = [o.value(x[0]) for o in front], [o.value(y[0]) for o in front]
    axes.plot(across, up, drawstyle=steps, color=MODEL, linewidth=1.2, alpha=0.6)
    axes.plot(across, up, "o", color=MODEL, markersize=7)
    axes.margins(0.08, 0.12)
    axes.autoscale_view()
    # Room for the names, which stand on the side of the better.
    edge = -_LABEL[0] if x[1] == "min" else 1 + _LABEL[0]
    place = float(axes.transData.inverted().transform(axes.transAxes.transform((edge, 0.0)))[0])
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, place), max(high, place))
    _label(axes, front, x, y)
    return figure


def _label(axes: Axes, front: Sequence[Outcome], x: tuple[str, Mode], y: tuple[str, Mode]) -> None:
    """Names trials on the side where no trial is; the best of both objectives first, others where there is room."""
    order = [front[0], front[-1], *front[1:-1]]
    left, up = x[1] == "min", y[1] == "max"
    taken: list[tuple[float, float]] = []
    for outcome in order:
        point = outcome.value(x[0]), outcome.value(y[0])
        place = axes.transAxes.inverted().transform(axes.transData.transform(point))
        if any(abs(place[0] - other[0]) < _LABEL[0] and abs(place[1] - other[1]) < _LABEL[1] for other in taken):
            continue
        taken.append((float(place[0]), float(place[1])))
        axes.annotate(
            f"{short_trial(outcome.trial)}  {number(point[1])}",
            point,
            (-6 if left else 6, 9 if up else -9),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            size=8,
            color=INK if outcome in (front[0], front[-1]) else FAINT,
            family=families(),
            parse_math=False,
        )
