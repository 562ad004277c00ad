"""Parallel coordinates: each trial a line through its settings to its result."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from dmlscale.evaluation.figures.style import DPI, EDGE, FAINT, INK, PALE, families, heading, written
from dmlscale.tuning.figures.labels import nothing, number, number_ticks, short_trial
from dmlscale.tuning.outcomes import Mode, Outcome, ranked
from dmlscale.tuning.searched import SearchedKey, searched_keys

_MOST_AXES = 11
_MOST_LETTERS = 18  # of a setting's name and of its values
_ACROSS, _LEAST_LEFT, _RIGHT, _NAMES, _BELOW = 1.3, 0.6, 1.6, 0.5, 0.25  # inches
_LETTER = 0.066  # inches
_UNUSED = -0.13  # where lines without the setting pass, below the axis [0, 1]
_FAN = 0.5  # of a name's share of the axis, over which its lines spread
_COLOURS = colormaps["viridis"]


def parallel_coordinates(outcomes: Sequence[Outcome], metric: str, mode: Mode) -> Figure:
    """One axis for each searched setting, and the metric at the right, where better is higher and darker.

    Args:
        outcomes: trials. Those that failed are dashed; those without a result yet are left out.
        metric: by which lines are coloured.
        mode: whether more or less of it is better.

    Returns:
        A figure of 100 dots per inch, wide enough for its axes, of which there are at most 12.
    """
    title = f"Settings of all trials, and {metric}"
    good = ranked(outcomes, metric, mode)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    shown = [*good, *failed]
    if not shown:
        return nothing(title, f"No trial has reported {metric} yet, and none has failed.")
    keys, left_out = _chosen(shown)
    result = SearchedKey(metric, numbers=tuple(sorted({outcome.value(metric) for outcome in good})))
    figure, axes = _canvas(title, _note(metric, len(good), len(failed), left_out), keys)
    for x, key in enumerate(keys):
        _axis(axes, x, key, any(key.key not in outcome.drawn for outcome in shown))
    _result_axis(axes, len(keys), result, mode, bool(failed))
    heights = [_heights(key, shown) for key in keys]
    for row in reversed(range(len(shown))):  # the best last, so that it lies above
        line = [height[row] for height in heights]
        if row >= len(good):
            axes.plot([*range(len(line)), len(keys)], [*line, _UNUSED], color=PALE, linewidth=1, linestyle=(0, (4, 2)))
            continue
        height = _result_height(result, good[row].value(metric), mode)
        line.append(height)
        thick = 3.4 if row == 0 else 1.3
        axes.plot(range(len(line)), line, color=_colour(height), linewidth=thick, alpha=1 if row == 0 else 0.75)
        if row == 0:
            axes.plot(len(keys), height, "o", color=_colour(height), markersize=6)
            text = f"{short_trial(good[0].trial)}\n{number(good[0].value(metric))}"
            _text(axes, len(keys) + 0.14, height, text, ha="left", weight="bold")
    return figure


def _chosen(shown: Sequence[Outcome]) -> tuple[list[SearchedKey], list[str]]:
    """Keys that vary, or all where none does; where there is no room, those that most trials have."""
    keys = searched_keys(shown)
    keys = [key for key in keys if key.varies] or keys
    common = sorted(keys, key=lambda key: -sum(key.key in outcome.drawn for outcome in shown))[:_MOST_AXES]
    # Settings of few losses go to the right, beside each other.
    left_out = [key.key for key in keys if key not in common]
    return common, left_out


def _note(metric: str, num_good: int, num_failed: int, left_out: Sequence[str]) -> str:
    parts = ["A line is a trial."]
    if num_good:
        parts.append(f"The darker, the better its {metric}; the thick one is the best.")
    if num_failed:
        parts.append(f"Dashed: {num_failed} failed.")
    if left_out:
        parts.append(f"Not shown, since fewest trials have them: {written(', '.join(left_out), 120)}.")
    return " ".join(parts)


def _canvas(title: str, note: str, keys: Sequence[SearchedKey]) -> tuple[Figure, Axes]:
    first = max((len(name) for name in keys[0].names), default=0) if keys else 0
    left = max(_LEAST_LEFT, EDGE + 0.1 + _LETTER * min(first, _MOST_LETTERS))
    width = max(7.6, left + _RIGHT + len(keys) * _ACROSS)
    most_names = max((len(key.names) for key in keys), default=0)
    height = max(4.9, 0.26 * most_names + 2.2)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    top = heading(figure, title, note) + _NAMES
    axes = figure.add_axes((left / width, _BELOW / height, 1 - (left + _RIGHT) / width, 1 - (top + _BELOW) / height))
    axes.set_axis_off()
    axes.set_xlim(0, max(1, len(keys)))
    axes.set_ylim(_UNUSED - 0.05, 1.02)
    return figure, axes


def _text(axes: Axes, x: float, y: float, text: str, *, ha: str = "right", weight: str = "normal") -> None:
    axes.text(
        x,
        y,
        text,
        ha=ha,
        va="center",
        size=7.5 if weight == "normal" else 8.5,
        weight=weight,
        color=INK,
        zorder=5,
        family=families(),
        parse_math=False,
        clip_on=False,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
    )


def _name(axes: Axes, x: float, key: str) -> None:
    section, _, last = key.rpartition(".") if "/" not in key else key.rpartition("/")
    for text, y, colour, weight in ((section, 29, FAINT, "normal"), (last, 15, INK, "bold")):
        axes.annotate(
            written(text, _MOST_LETTERS),
            (x, 1.02),
            (0, y),
            textcoords="offset points",
            ha="center",
            va="center",
            size=8,
            weight=weight,
            color=colour,
            family=families(),
            parse_math=False,
            annotation_clip=False,
        )


def _axis(axes: Axes, x: float, key: SearchedKey, has_unused: bool) -> None:
    _name(axes, x, key.key)
    axes.plot([x, x], [0, 1], color=FAINT, linewidth=0.9, zorder=1)
    if key.names:
        ticks = [((place + 0.5) / len(key.names), written(name, _MOST_LETTERS)) for place, name in enumerate(key.names)]
    else:
        ticks = [(_share(key, position), text) for position, text in number_ticks(key)]
    for y, text in ticks:
        axes.plot([x - 0.03, x], [y, y], color=FAINT, linewidth=0.9, zorder=1, clip_on=False)
        _text(axes, x - 0.05, y, text)
    if has_unused:
        axes.plot(x, _UNUSED, "_", color=FAINT, markersize=9, zorder=1, clip_on=False)
        _text(axes, x - 0.05, _UNUSED, "not used")


def _result_axis(axes: Axes, x: float, result: SearchedKey, mode: Mode, has_failed: bool) -> None:
    _name(axes, x, result.key)
    if has_failed:
        axes.plot(x, _UNUSED, "x", color=FAINT, markersize=6, zorder=6, clip_on=False)
        _text(axes, x + 0.06, _UNUSED, "failed", ha="left")
    if not result.numbers:
        return
    steps = 64
    for step in range(steps):
        part = [step / steps, (step + 1) / steps]
        axes.plot(
            [x, x],
            part,
            color=_colour(part[0]),
            linewidth=5,
            solid_capstyle="butt",
            antialiased=False,
            zorder=1,
            clip_on=False,
        )
    for position, text in number_ticks(result):
        y = _result_height(result, 10**position if result.is_log else position, mode)
        _text(axes, x - 0.05, y, text)


def _share(key: SearchedKey, position: float) -> float:
    """Position -> [0, 1] along the axis; one value alone lies in the middle."""
    low, high = key.scaled(key.numbers[0]), key.scaled(key.numbers[-1])
    return (position - low) / (high - low) if high > low else 0.5


def _result_height(result: SearchedKey, value: float, mode: Mode) -> float:
    if len(result.numbers) == 1:
        return 0.5
    share = _share(result, result.scaled(value))
    return share if mode == "max" else 1 - share


def _heights(key: SearchedKey, shown: Sequence[Outcome]) -> list[float]:
    """Where each line passes the axis. Lines of one name fan out in the order of rank, else all would be one."""
    heights = []
    for row, outcome in enumerate(shown):
        position = key.position(outcome)
        if math.isnan(position):
            heights.append(_UNUSED)
        elif key.names:
            fan = _FAN * (0.5 - row / (len(shown) - 1)) if len(shown) > 1 else 0.0
            heights.append((position + 0.5 + fan) / len(key.names))
        else:
            heights.append(_share(key, position))
    return heights


def _colour(height: float) -> str:
    """Of a result: dark violet for the best, and no lighter than can be seen on white."""
    return to_hex(_COLOURS(0.9 * (1 - height)))
