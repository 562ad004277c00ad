"""Pairs, ROC and Recall@K: what is drawn is what was given."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.patches import StepPatch

from dmlscale.evaluation.figures.distances import distance_histogram
from dmlscale.evaluation.figures.recall_curve import recall_curve
from dmlscale.evaluation.figures.roc import roc_curve
from tests.evaluation.figures.drawn import require_legible, texts

EDGES = np.linspace(-1, 1, 41)
SAME = np.exp(-(((EDGES[1:] - 0.6) / 0.2) ** 2)) * 1000
DIFFERENT = np.exp(-(((EDGES[1:]) / 0.3) ** 2)) * 90_000
ONE = np.eye(40)[39]
NAN = float("nan")


def test_both_kinds_of_pairs_have_equal_areas() -> None:
    figure = distance_histogram(EDGES, SAME, DIFFERENT, threshold=0.4, closeness="cosine similarity", eer=0.08)
    outlines = [patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch) and not patch.get_fill()]
    areas = [float((heights * np.diff(edges)).sum()) for heights, edges, _ in (line.get_data() for line in outlines)]
    assert areas == pytest.approx([1, 1])
    assert {"same class", "different classes", "threshold 0.400"} <= set(texts(figure))
    assert figure.axes[0].get_xlabel().startswith("cosine similarity")
    require_legible(figure)


@pytest.mark.parametrize(
    ("same", "different", "threshold"),
    [(0 * SAME, DIFFERENT, NAN), (SAME, 0 * SAME, None), (ONE, ONE, 0.99), (ONE, ONE[::-1], 0.0), (SAME, SAME, 0.6)],
    ids=["no same", "no different", "one bin", "perfect", "alike"],
)
def test_pairs_of_any_kind(same: np.ndarray, different: np.ndarray, threshold: float | None) -> None:
    require_legible(distance_histogram(EDGES, same, different, threshold=threshold, eer=NAN))


def test_a_threshold_that_is_not_on_the_axis_is_not_drawn() -> None:
    figure = distance_histogram(EDGES, SAME, DIFFERENT, threshold=7.0)
    assert not any(text.startswith("threshold") for text in texts(figure))


def test_pairs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        distance_histogram(EDGES, 0 * SAME, 0 * SAME)
    with pytest.raises(ValueError, match="b bins have b \\+ 1 edges"):
        distance_histogram(EDGES[1:], SAME, DIFFERENT)


def test_roc_marks_lie_where_they_are_said_to_be() -> None:
    far = np.concatenate([[0.0], np.geomspace(1e-5, 1, 60)])
    figure = roc_curve(far, far**0.15, auc=0.93, eer=0.1, marked={1e-1: 0.7, 1e-3: 0.35})
    axes = figure.axes[0]
    points = [tuple(np.ravel(line.get_xydata())) for line in axes.lines if len(np.ravel(line.get_xdata())) == 1]
    assert points == [(0.1, 0.7), (0.001, 0.35), (0.1, 0.9)]
    assert {"70.0 %", "35.0 %", "EER 10.0 %"} <= set(texts(figure))
    assert axes.get_xscale() == "log"
    assert any("0.9300" in text for text in texts(figure))
    require_legible(figure)


@pytest.mark.parametrize(
    ("far", "tar", "eer"),
    [([0, 1e-3, 1], [1, 1, 1], 0.0), ([0, 0.5, 1], [0, 0.5, 1], 0.5), ([0, 0, 1], [0, 1, 1], NAN), ([1], [1], None)],
    ids=["perfect", "chance", "nothing between", "one point"],
)
def test_roc_of_any_kind(far: list[float], tar: list[float], eer: float | None) -> None:
    require_legible(roc_curve(np.array(far), np.array(tar), auc=0.5, eer=eer, marked={0.1: 0.02}))


def test_roc_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="above 0"):
        roc_curve(np.zeros(3), np.ones(3), auc=1)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        roc_curve(np.zeros(2), np.ones(3), auc=1)


def test_recall_lines_are_the_given_values() -> None:
    figure = recall_curve(
        [1, 2, 4, 8],
        [0.634, 0.741, 0.829, 0.9],
        intervals=[(0.6, 0.66), (0.7, 0.76), (NAN, NAN), (0.88, 0.92)],
        baseline=[0.21, 0.28, 0.37, 0.45],
    )
    pixels, model = sorted(np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines)
    assert model == [0.634, 0.741, 0.829, 0.9]
    assert pixels == [0.21, 0.28, 0.37, 0.45]
    assert {"this model", "raw pixels", "63.4 %", "45.0 %"} <= set(texts(figure))
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["1", "2", "4", "8"]
    require_legible(figure)


@pytest.mark.parametrize(
    ("ks", "recalls", "baseline"),
    [
        ([1], [0.5], None),
        ([1], [0.0], [0.0]),
        ([1, 2, 4, 8], [1.0] * 4, [1.0] * 4),
        ([1, 10, 100, 1000], [0.95, 0.97, 0.99, 1.0], [0.94, 0.965, 0.985, 0.995]),
        ([1, 2, 4], [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
    ],
    ids=["one", "nothing", "all right", "close", "worse than pixels"],
)
def test_recalls_of_any_kind(ks: list[int], recalls: list[float], baseline: list[float] | None) -> None:
    figure = recall_curve(ks, recalls, baseline=baseline)
    require_legible(figure)
    assert all(0 <= tick <= 1 for tick in figure.axes[0].get_yticks())
    assert not math.isnan(figure.axes[0].get_ylim()[0])


def test_recalls_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one"):
        recall_curve([], [])
    with pytest.raises(ValueError, match="2 ks"):
        recall_curve([1, 2], [0.1, 0.2], baseline=[0.1])
