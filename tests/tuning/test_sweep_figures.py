import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from dmlscale.tuning.figures import (
    final_comparison,
    importance_bars,
    learning_curves,
    parallel_coordinates,
    pareto_front,
)
from dmlscale.tuning.figures.labels import apart, number, number_ticks
from dmlscale.tuning.importance import Importance, KeyImportance, importance
from dmlscale.tuning.outcomes import Mode, Outcome, pareto
from dmlscale.tuning.searched import SearchedKey
from tests.tuning.planted import METRIC, planted_trials

Draw = Callable[[list[Outcome]], Figure]
_DRAWN: dict[str, Draw] = {
    "parallel": lambda trials: parallel_coordinates(trials, METRIC, "max"),
    "parallel, less is better": lambda trials: parallel_coordinates(trials, METRIC, "min"),
    "curves": lambda trials: learning_curves(trials, METRIC, "max", baseline=trials[0] if trials else None),
    "importance": lambda trials: importance_bars(importance(trials, METRIC)),
    "pareto": lambda trials: pareto_front(trials, ("cost_s", "min"), (METRIC, "max")),
}


def _long(trials: list[Outcome]) -> list[Outcome]:
    name = "vit_base_patch16_clip_224.openai_$finetuned_{}$_on_everything"
    return [
        replace(
            outcome,
            trial=f"a_sweep_of_a_long_name_{outcome.trial}",
            drawn={**outcome.drawn, "model.of.a.long_dotted.key_that_goes_on_and_on": name.format(row % 3)},
        )
        for row, outcome in enumerate(trials)
    ]


_CASES: dict[str, list[Outcome]] = {
    "none": [],
    "one": planted_trials(1),
    "sixty": planted_trials(60),
    "all failed": [replace(outcome, status="failed") for outcome in planted_trials(8)],
    "failed at once": [replace(outcome, status="failed", curve=()) for outcome in planted_trials(8)],
    "some failed": [replace(o, status="failed") if i % 4 == 0 else o for i, o in enumerate(planted_trials(24))],
    "identical": [replace(outcome, curve=((100, {METRIC: 0.5, "cost_s": 3.0}),)) for outcome in planted_trials(12)],
    "not finite": [
        replace(outcome, curve=((100, {METRIC: math.nan, "cost_s": math.inf}),)) for outcome in planted_trials(8)
    ],
    "long names": _long(planted_trials(20)),
    "nothing searched": [replace(outcome, drawn={}) for outcome in planted_trials(7)],
}


def _drawn(figure: Figure) -> np.ndarray:
    """Draws it, without any warning; its pixels in grey."""
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].mean(axis=2)


def _texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text() and text.get_visible()]


def _words(figure: Figure) -> str:
    return " ".join("\n".join(text.get_text() for text in _texts(figure)).split())


def _ticks_out_of_view(axes: Axes) -> set[int]:
    """Labels of ticks that an axis holds ready but does not draw."""
    found = set()
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not (axes.axison and low <= tick.get_loc() <= high):
                found |= {id(tick.label1), id(tick.label2)}
    return found


def _hidden(figure: Figure) -> list[str]:
    """Texts that leave the figure, or lie over each other."""
    figure.draw_without_rendering()  # places what is placed while drawing
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    undrawn = _ticks_out_of_view(figure.axes[0])
    shown = [text for text in _texts(figure) if id(text) not in undrawn]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in shown]
    wrong = [f"{text!r} leaves" for text, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]
    for (first, a), (second, b) in combinations(boxes, 2):
        across, up = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        if across > 1 and up > 2:
            wrong.append(f"{first!r} over {second!r}")
    return wrong


_FORESTS = ("none", "one", "sixty", "long names", "nothing searched")  # the others would take long and show no more


@pytest.mark.parametrize(
    ("kind", "case"), [(kind, case) for kind in _DRAWN for case in _CASES if kind != "importance" or case in _FORESTS]
)
def test_figures_are_light_and_no_text_hides_another(kind: str, case: str) -> None:
    figure = _DRAWN[kind](_CASES[case])
    pixels = _drawn(figure)
    assert pixels.shape == tuple(int(side * 100) for side in reversed(figure.get_size_inches()))
    assert pixels[0, 0] == pixels[-1, -1] == 255
    assert pixels.mean() > 200
    assert _hidden(figure) == []


def test_parallel_coordinates_tell_best_failed_and_unused() -> None:
    trials = _CASES["some failed"]
    figure = parallel_coordinates(trials, METRIC, "max")
    axes = figure.axes[0]
    counted = [outcome for outcome in trials if outcome.status != "failed"]
    best = max(counted, key=lambda outcome: outcome.value(METRIC))
    assert f"{best.trial} {number(best.value(METRIC))}" in _words(figure)
    assert _words(figure).count("not used") == 2  # margin and temperature, of one loss each
    lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 7]
    assert len(lines) == len(trials)
    assert sum(line.get_linestyle() == "--" for line in lines) == len(trials) - len(counted)
    thickest = max(lines, key=lambda line: line.get_linewidth())
    assert thickest is lines[-1]  # above all others
    assert np.asarray(thickest.get_ydata())[-1] == 1
    assert "6 failed" in _words(figure)


def test_the_better_the_darker_whichever_is_better() -> None:
    modes: tuple[Mode, ...] = ("max", "min")
    for mode in modes:
        axes = parallel_coordinates(planted_trials(12), METRIC, mode).axes[0]
        lines = [line for line in axes.lines if len(np.asarray(line.get_xdata())) == 7]
        heights = [float(np.asarray(line.get_ydata())[-1]) for line in lines]
        lightness = [np.dot(to_rgb(line.get_color()), (0.299, 0.587, 0.114)) for line in lines]
        assert heights == sorted(heights)
        assert lightness == sorted(lightness, reverse=True)


def test_too_many_settings_are_named_not_squeezed() -> None:
    drawn = [{f"losses.option_{key}": float(row * key) for key in range(1, 31)} for row in range(9)]
    trials = [replace(o, drawn=settings) for o, settings in zip(planted_trials(9), drawn, strict=True)]
    figure = parallel_coordinates(trials, METRIC, "max")
    assert figure.get_size_inches()[0] < 18
    assert "Not shown" in _words(figure)
    assert _hidden(figure) == []


def test_curves_name_losses_the_best_and_the_baseline() -> None:
    trials = planted_trials(20)
    baseline = replace(trials[0], trial="defaults", status="finished")
    words = _words(learning_curves(trials, METRIC, "max", baseline=baseline))
    best = max(trials, key=lambda outcome: outcome.value(METRIC))
    assert f"best: {best.trial}" in words
    assert {"triplet", "supervised_contrastive"} <= set(words.split())
    assert f"defaults, {number(baseline.value(METRIC))}" in words
    stopped = sum(outcome.status == "stopped" for outcome in trials)
    assert f"{stopped} stopped early" in words


def test_more_losses_than_colours_share_the_last() -> None:
    trials = [replace(o, drawn={"losses.name": f"loss_{i % 14}"}) for i, o in enumerate(planted_trials(42))]
    figure = learning_curves(trials, METRIC, "max")
    assert "others" in _words(figure)
    assert _hidden(figure) == []


def test_bars_say_how_far_they_can_be_trusted() -> None:
    keys = tuple(KeyImportance(f"losses.option_{key}", 0.5 - key / 50, 0.01, 12) for key in range(20))
    words = _words(importance_bars(Importance(METRIC, keys, 30, 0.62, left_out=("rare",))))
    assert "62 %" in words
    assert "5 that matter less are not shown" in words
    assert "rare" in words
    assert "in 12 trials" in words
    assert "chance" in _words(importance_bars(Importance(METRIC, keys, 30, -0.1)))
    assert "5 trials" in _words(importance_bars(importance(planted_trials(5), METRIC)))


@pytest.mark.parametrize("modes", [("min", "max"), ("max", "max"), ("min", "min"), ("max", "min")])
def test_the_front_is_joined_and_its_end_is_named(modes: tuple[Mode, Mode]) -> None:
    trials = planted_trials(30)
    x, y = ("cost_s", modes[0]), (METRIC, modes[1])
    figure = pareto_front(trials, x, y)
    front = pareto(trials, dict((x, y)))
    words = _words(figure)
    assert f"Blue ({len(front)})" in words
    assert front[0].trial in words or front[-1].trial in words
    assert _hidden(figure) == []


def test_the_comparison_says_whether_it_is_chance() -> None:
    figure = final_comparison({0: 0.61, 1: 0.62, 2: 0.60}, {0: 0.58, 1: 0.60, 2: 0.575}, METRIC, "max")
    assert "better by 0.0250" in _words(figure)
    assert "more than seeds explain" in _words(figure)
    assert _hidden(figure) == []
    assert "worse by" in _words(final_comparison({0: 0.61, 1: 0.62}, {0: 0.58, 1: 0.6}, METRIC, "min"))
    assert "may explain it" in _words(final_comparison({0: 0.61, 1: 0.5}, {0: 0.58, 1: 0.6}, METRIC, "max"))
    assert "one seed cannot tell" in _words(final_comparison({0: 0.61}, {0: 0.58}, METRIC, "max"))
    assert "no seed in common" in _words(final_comparison({0: 0.61}, {1: 0.58}, METRIC, "max"))
    assert "no run of the defaults" in _words(final_comparison({0: 0.61}, {}, METRIC, "max"))
    assert "neither" in _words(final_comparison({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}, METRIC, "max"))


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.12))
def test_labels_keep_apart_and_in_order(positions: list[float], gap: float) -> None:
    places = apart(positions, gap)
    assert all(a - b >= gap - 1e-9 or b - a >= gap - 1e-9 for a, b in combinations(places, 2))
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    for (old, new), (other, other_new) in combinations(zip(positions, places, strict=True), 2):
        assert old == other or (old < other) == (new < other_new)
    wide = sorted(positions)
    if all(after - before >= gap for before, after in pairwise(wide)):
        assert places == positions


def test_numbers_are_short() -> None:
    numbers = {0.0005: "0.0005", 0.61234: "0.612", 1250: "1,250", 3e-6: "3e-6", 12345678: "1.23e7", 0: "0", 64: "64"}
    assert {value: number(value) for value in numbers} == numbers


@given(st.lists(st.floats(1e-6, 1e6) | st.integers(1, 1000), min_size=1, max_size=20))
def test_ticks_are_on_the_axis_and_end_at_its_ends(values: list[float]) -> None:
    key = SearchedKey("key", numbers=tuple(sorted({float(value) for value in values})))
    ticks = number_ticks(key)
    positions = [position for position, _ in ticks]
    assert positions == sorted(positions)
    assert positions[0] == pytest.approx(key.scaled(key.numbers[0]), rel=1e-6, abs=1e-9)
    assert positions[-1] == pytest.approx(key.scaled(key.numbers[-1]), rel=1e-6, abs=1e-9)
    assert len(ticks) <= 5
