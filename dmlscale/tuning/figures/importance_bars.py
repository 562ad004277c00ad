"""Importance of searched settings, as bars."""

from __future__ import annotations

from matplotlib.figure import Figure

from dmlscale.evaluation.figures.style import BOTTOM, EDGE, FAINT, INK, LINE, MODEL, families, panel, written
from dmlscale.tuning.figures.labels import nothing
from dmlscale.tuning.importance import Importance

_MOST_BARS = 15
_BAR, _LEFT, _NUMBERS = 0.3, 2.5, 1.9  # inches
_LEAST_RANGE = 0.1  # of the axis, so that settings that do not matter are not blown up


def importance_bars(importance: Importance) -> Figure:
    """A bar for each setting, the most important at the top.

    Args:
        importance: as `dmlscale.tuning.importance.importance` tells it.

    Returns:
        A figure of 100 dots per inch; without any keys, it says why.
    """
    title = f"What matters for {importance.metric}"
    if not importance.keys:
        return nothing(title, f"Cannot be told: {importance.reason}.")
    shown = importance.keys[:_MOST_BARS]
    width, height = 7.6, 1.9 + _BAR * len(shown)
    figure, axes = panel(title, _note(importance), width=width, height=height)
    box = axes.get_position()
    axes.set_position((_LEFT / width, BOTTOM / height, 1 - (_LEFT + _NUMBERS + EDGE) / width, box.y1 - BOTTOM / height))
    axes.barh(range(len(shown)), [max(key.mean, 0) for key in shown], height=0.62, color=MODEL)
    for row, key in enumerate(shown):
        axes.plot([max(key.mean - key.spread, 0), max(key.mean + key.spread, 0)], [row, row], color=INK, linewidth=1.2)
        text = f"{key.mean:.3f}" + (f"  in {key.num_trials} trials" if key.num_trials < importance.num_trials else "")
        axes.text(1.02, row, text, transform=axes.get_yaxis_transform(), va="center", size=8.5, color=FAINT)
    axes.set_yticks(range(len(shown)), [written(key.key, 32) for key in shown])
    for label in axes.get_yticklabels():
        label.set(color=INK, family=families(), parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, max(_LEAST_RANGE, 1.05 * max(key.mean + key.spread for key in shown)))
    axes.grid(False)
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_xlabel("error added by shuffling the setting, over the metric's variance")
    return figure


def _note(importance: Importance) -> str:
    if importance.explained <= 0:
        trust = "Settings do not tell the result of a trial left out, so this order may be chance."
    else:
        trust = f"Settings and steps tell {100 * importance.explained:.0f} % of the variance of trials left out."
    parts = [f"By a random forest over {importance.num_trials} trials.", trust, "Line: spread over shuffles."]
    if importance.left_out:
        parts.append(f"In too few trials: {written(', '.join(importance.left_out), 90)}.")
    if len(importance.keys) > _MOST_BARS:
        parts.append(f"{len(importance.keys) - _MOST_BARS} that matter less are not shown.")
    return " ".join(parts)
