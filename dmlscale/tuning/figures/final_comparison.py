"""The best config against the defaults, over seeds."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmlscale.evaluation.figures.style import BOTTOM, EDGE, FAINT, INK, LINE, MODEL, OTHER, PALE, panel
from dmlscale.tuning.figures.labels import nothing
from dmlscale.tuning.outcomes import Mode
from dmlscale.tuning.repeats import Repeats, paired, repeats

_WIDTH, _HEIGHT, _LEFT, _TEXT = 8.2, 2.9, 1.1, 1.75  # inches


def final_comparison(best: Mapping[int, float], defaults: Mapping[int, float], metric: str, mode: Mode) -> Figure:
    """A dot for each seed, and the mean of both with its 95 % interval.

    Args:
        best: seed -> metric of the sweep's best config.
        defaults: seed -> metric of the config that the sweep began with. Runs that failed are in neither.
        metric: what it is.
        mode: whether more or less of it is better.

    Returns:
        A figure of 100 dots per inch; its note says whether the best one is better than seeds explain.
    """
    title = f"Best config and defaults: {metric}"
    if not best or not defaults:
        missing = " and ".join(name for name, values in (("the best", best), ("the defaults", defaults)) if not values)
        return nothing(title, f"Nothing to compare: no run of {missing} has a result.")
    figure, axes = panel(title, verdict(best, defaults, mode), width=_WIDTH, height=_HEIGHT)
    box = axes.get_position()
    axes.set_position((_LEFT / _WIDTH, box.y0, 1 - (_LEFT + _TEXT + EDGE) / _WIDTH, box.y1 - BOTTOM / _HEIGHT))
    for seed in best:
        if seed in defaults:
            axes.plot([defaults[seed], best[seed]], [1, 0], color=PALE, linewidth=1, zorder=1)
    _row(axes, 0, best, MODEL)
    _row(axes, 1, defaults, OTHER)
    axes.set_ylim(1.5, -0.5)
    axes.set_yticks([0, 1], ["best", "defaults"])
    axes.tick_params(axis="y", length=0, labelsize=9, labelcolor=INK)
    axes.margins(x=0.08)
    axes.grid(False)
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_xlabel(f"{metric}  ({'more' if mode == 'max' else 'less'} is better)")
    return figure


def verdict(best: Mapping[int, float], defaults: Mapping[int, float], mode: Mode) -> str:
    """Whether the best config is better than the defaults, in one or two sentences.

    Args:
        best: seed -> metric.
        defaults: seed -> metric, at least one seed of `best` among them.
        mode: whether more or less of it is better.
    """
    if not set(best) & set(defaults):
        return "The two have no seed in common, so they cannot be compared pair by pair."
    sign = 1 if mode == "max" else -1
    difference = paired(best, defaults)
    gain = sign * difference.mean
    side = "better" if gain > 0 else "worse" if gain < 0 else "neither better nor worse"
    if difference.half_width is None:
        return f"{_by(gain, side)} with the one seed that both have: one seed cannot tell whether that is chance."
    seeds = f"{difference.n} seeds"
    amount = f"{_by(gain, side)} (95 % interval of best minus defaults over {seeds}: {_interval(difference)})"
    if difference.excludes_zero:
        return f"{amount}. That is more than seeds explain."
    return f"{amount}. The interval holds 0: seeds alone may explain it."


def _by(gain: float, side: str) -> str:
    return f"The best is {side}" + (f" by {abs(gain):.4f}" if gain else "")


def _interval(difference: Repeats) -> str:
    half = difference.half_width or 0.0
    return f"{difference.mean - half:+.4f} to {difference.mean + half:+.4f}"


def _row(axes: Axes, y: float, values: Mapping[int, float], colour: str) -> None:
    summary = repeats(list(values.values()))
    axes.plot(list(values.values()), [y] * len(values), "o", color=colour, markersize=6, alpha=0.55, markeredgewidth=0)
    if summary.half_width is not None:
        ends = [summary.mean - summary.half_width, summary.mean + summary.half_width]
        axes.plot(ends, [y + 0.2] * 2, color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot(summary.mean, y + 0.2, "D", color=colour, markersize=6)
    text = f"{summary.mean:.4f}"
    text += f" \N{PLUS-MINUS SIGN} {summary.half_width:.4f}" if summary.half_width is not None else ""
    seeds = f"{summary.n} seeds" if summary.n > 1 else "one seed: no interval"
    for words, offset, size, ink in ((text, -0.09, 9, INK), (seeds, 0.12, 8, FAINT)):
        axes.text(1.02, y + offset, words, transform=axes.get_yaxis_transform(), va="center", size=size, color=ink)
