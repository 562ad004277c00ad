"""Learning curves of all trials: the metric by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmlscale.evaluation.figures.style import CLASSES, EDGE, FAINT, INK, LEFT, families, panel, written
from dmlscale.tuning.figures.labels import apart, nothing, number, short_trial
from dmlscale.tuning.outcomes import Mode, Outcome, best
from dmlscale.tuning.searched import name_of, searched_keys

_WIDTH, _HEIGHT, _LABELS = 9.0, 4.8, 2.35  # inches
_LABEL_GAP = 0.36  # inches: two lines of a label
_OTHERS = "others"
_COLOURS = tuple(colour for colour in CLASSES if colour != "#000000")  # black is the baseline's


def learning_curves(outcomes: Sequence[Outcome], metric: str, mode: Mode, *, baseline: Outcome | None = None) -> Figure:
    """A line for each trial, coloured by its loss or, where that is not searched, by the first setting with names.

    Args:
        outcomes: trials. Those without a finite value of the metric are left out.
        metric: of each report.
        mode: whether more or less of it is better.
        baseline: a run with the defaults, drawn black and dashed.

    Returns:
        A figure of 100 dots per inch; names stand at the right, as high as the best of each colour ends.
    """
    title = f"{metric} by step"
    shown = [outcome for outcome in outcomes if len(_points(outcome, metric))]
    if not shown:
        return nothing(title, f"No trial has reported {metric}.")
    winner = best(shown, metric, mode)
    groups = _groups(shown)
    figure, axes = panel(title, _note(shown, _coloured_by(shown)), width=_WIDTH, height=_HEIGHT)
    box = axes.get_position()
    axes.set_position((box.x0, box.y0, 1 - (LEFT + EDGE + _LABELS) / _WIDTH, box.height))
    axes.set_xlabel("step")
    axes.set_xlim(0, 1.03 * max(outcome.steps for outcome in [*shown, *([baseline] if baseline else [])]))
    names = sorted(set(groups), key=lambda name: (-groups.count(name), name))
    colours = dict(zip(names, _COLOURS, strict=False))
    labels = []
    for name in reversed(names):  # the rare ones last, so that they are not hidden
        own = [outcome for outcome, group in zip(shown, groups, strict=True) if group == name]
        colour = colours.get(name, FAINT)
        for outcome in own:
            _curve(axes, outcome, metric, colour, outcome is winner)
        sign = 1 if mode == "max" else -1
        first = winner if winner in own else max(own, key=lambda outcome: sign * _points(outcome, metric)[-1, 1])
        is_best = first is winner
        text = written(name, 24)
        if is_best:
            text = f"{text}\nbest: {short_trial(first.trial)}, {number(first.value(metric))}".lstrip("\n")
        if text:
            labels.append((float(_points(first, metric)[-1, 1]), text, colour, is_best))
    if baseline is not None and len(points := _points(baseline, metric)):
        axes.plot(*points.T, color=INK, linewidth=1.8, linestyle=(0, (4, 2)), zorder=5)
        labels.append((float(points[-1, 1]), f"defaults, {number(points[-1, 1])}", INK, False))
    _label(axes, labels)
    return figure


def _points(outcome: Outcome, metric: str) -> np.ndarray:
    """(reports, 2): step and value of those that are finite."""
    found = [(step, metrics[metric]) for step, metrics in outcome.curve if math.isfinite(metrics.get(metric, math.nan))]
    return np.array(found, float).reshape(-1, 2)


def _coloured_by(shown: Sequence[Outcome]) -> str:
    keys = [key for key in searched_keys(shown) if key.names and key.varies]
    return next((key.key for key in keys if key.key == "losses.name"), keys[0].key if keys else "")


def _groups(shown: Sequence[Outcome]) -> list[str]:
    """The name by which each trial is coloured; rare ones share the last colour where there are too few."""
    key = _coloured_by(shown)
    if not key:
        return [""] * len(shown)
    names = [name_of(outcome.drawn[key]) if key in outcome.drawn else "not used" for outcome in shown]
    common = sorted(set(names), key=lambda name: (-names.count(name), name))
    if len(common) > len(_COLOURS):
        names = [name if name in common[: len(_COLOURS) - 1] else _OTHERS for name in names]
    return names


def _note(shown: Sequence[Outcome], key: str) -> str:
    parts = [f"A line is a trial{f', coloured by {key}' if key else ''}."]
    stopped, failed = (sum(outcome.status == status for outcome in shown) for status in ("stopped", "failed"))
    if stopped:
        parts.append(f"Ring: {stopped} stopped early.")
    if failed:
        parts.append(f"Cross: {failed} failed.")
    return " ".join(parts)


def _curve(axes: Axes, outcome: Outcome, metric: str, colour: str, is_best: bool) -> None:
    points = _points(outcome, metric)
    axes.plot(
        *points.T,
        color=colour,
        linewidth=3 if is_best else 1.1,
        alpha=1 if is_best else 0.7,
        zorder=4 if is_best else 2,
        marker="." if len(points) == 1 else None,
    )
    above = 6 if is_best else 3
    if outcome.status == "stopped":
        size = 7.5 if is_best else 4.5
        axes.plot(*points[-1], "o", color=colour, markerfacecolor="white", markersize=size, zorder=above)
    elif outcome.status == "failed":
        axes.plot(*points[-1], "x", color=colour, markersize=5.5, markeredgewidth=1.5, zorder=above)


def _label(axes: Axes, labels: Sequence[tuple[float, str, str, bool]]) -> None:
    """Writes (value, text, colour, whether bold) to the right, near their values."""
    low, high = axes.get_ylim()
    figure = axes.figure
    height = axes.get_position().height * figure.get_size_inches()[1] if isinstance(figure, Figure) else _HEIGHT
    places = apart([(value - low) / (high - low) for value, *_ in labels], _LABEL_GAP / height, high=0.98)
    for place, (_, text, colour, bold) in zip(places, labels, strict=True):
        dashes = (0, (2, 1)) if colour == INK else "solid"
        axes.plot([1.025, 1.06], [place] * 2, c=colour, lw=3, ls=dashes, transform=axes.transAxes, clip_on=False)
        axes.text(
            1.075,
            place,
            text,
            va="center",
            size=8.5,
            weight="bold" if bold else "normal",
            color=INK,
            family=families(),
            parse_math=False,
            transform=axes.transAxes,
        )
