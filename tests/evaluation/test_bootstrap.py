"""Intervals from classes drawn anew, against a slow loop and against planted data."""

from __future__ import annotations

import numpy as np
import pytest

from dmlscale.evaluation import bootstrap
from dmlscale.evaluation.bootstrap import intervals
from dmlscale.evaluation.metrics import PerClass


def per_class(sums: np.ndarray, counts: np.ndarray, **more: tuple[np.ndarray, np.ndarray]) -> PerClass:
    columns = {"precision_at_1": (sums, counts), **more}
    return PerClass(
        np.arange(len(sums)),
        {name: np.asarray(pair[0], np.float64) for name, pair in columns.items()},
        {name: np.asarray(pair[1], np.int64) for name, pair in columns.items()},
    )


def test_equals_a_slow_loop_over_the_same_draws() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 20, 12)
    sums = rng.uniform(0, counts)
    draws = np.random.default_rng(5).integers(0, 12, (400, 12))
    means = [sum(sums[c] for c in drawn) / sum(int(counts[c]) for c in drawn) for drawn in draws]
    lower, upper = intervals(per_class(sums, counts), replicates=400, seed=5)["precision_at_1"]
    assert (lower, upper) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-12)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 9, 30)
    data = per_class(rng.uniform(0, counts), counts)
    whole = intervals(data, seed=3)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 7 * 30)
    assert intervals(data, seed=3) == whole
    assert intervals(data, seed=4) != whole


def test_the_true_mean_is_in_about_95_of_100_intervals() -> None:
    """Classes differ in difficulty and size; single queries drawn anew would give intervals three times too narrow."""
    rng = np.random.default_rng(2)
    num_classes, trials, hits, widths = 60, 300, 0, []
    for trial in range(trials):
        counts = rng.integers(20, 40, num_classes)
        sums = rng.binomial(counts, rng.beta(2, 1, num_classes))  # mean 2 / 3
        lower, upper = intervals(per_class(sums, counts), replicates=300, seed=trial)["precision_at_1"]
        hits += lower <= 2 / 3 <= upper
        widths.append(upper - lower)
    assert 0.90 <= hits / trials <= 0.98
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt((1 / 18 + 2 / 9 / 30) / num_classes), rel=0.1)


@pytest.mark.parametrize(("sums", "counts"), [([3.0], [4]), ([3.0, 0.0], [4, 0]), ([0.0, 0.0], [0, 0])])
def test_one_class_has_no_interval(sums: list[float], counts: list[int]) -> None:
    lower, upper = intervals(per_class(np.array(sums), np.array(counts)))["precision_at_1"]
    assert np.isnan(lower)
    assert np.isnan(upper)


def test_a_metric_of_a_few_classes_beside_one_of_all() -> None:
    ones, few = np.ones(50), np.array([1] + [0] * 49)
    two = np.array([1, 1] + [0] * 48)
    found = intervals(per_class(ones, 2 * ones, one=(few, few), two=(np.array([1.0] + [0.0] * 49), two)))
    assert found["precision_at_1"] == (0.5, 0.5)
    assert np.isnan(found["one"]).all()
    assert found["two"] == (0.0, 1.0)  # replicates without either class are left out
