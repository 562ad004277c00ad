import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dmlscale.launch.errors import LaunchError
from dmlscale.tuning.outcomes import Outcome, Status, best, pareto, ranked
from dmlscale.tuning.repeats import paired, repeats
from tests.tuning.planted import METRIC, planted_trials

_NUMBERS = st.floats(-1e6, 1e6)
_ANY_NUMBER = st.floats()


def _trial(name: str, *values: float, status: Status = "finished", **metrics: float) -> Outcome:
    curve = tuple((step + 1, {METRIC: value, **metrics}) for step, value in enumerate(values))
    return Outcome(trial=name, status=status, drawn={}, curve=curve)


def test_the_last_report_counts() -> None:
    outcome = Outcome(
        trial="a",
        status="running",
        drawn={},
        curve=((5, {METRIC: 0.7}), (10, {METRIC: 0.4}), (12, {"train/loss": 1.0})),
    )
    assert outcome.steps == 12
    assert outcome.metrics == {"train/loss": 1.0}
    assert outcome.value(METRIC) == 0.4
    assert outcome.best_value(METRIC, "max") == 0.7
    assert outcome.best_value(METRIC, "min") == 0.4
    assert math.isnan(outcome.value("other"))
    assert Outcome(trial="b", status="pending", drawn={}).steps == 0


@given(
    curve=st.dictionaries(st.integers(0, 10**9), st.dictionaries(st.text(max_size=3), _ANY_NUMBER, max_size=2)),
    drawn=st.dictionaries(
        st.text(max_size=3), st.none() | st.booleans() | st.integers() | st.text(max_size=3) | _NUMBERS, max_size=3
    ),
    text=st.text(max_size=5),
)
def test_json_keeps_everything(curve: dict[int, Any], drawn: dict[str, Any], text: str) -> None:
    outcome = Outcome(trial=text, status="failed", reason=text, drawn=drawn, curve=tuple(sorted(curve.items())))
    line = json.dumps(outcome.to_json(), allow_nan=False)
    assert repr(Outcome.from_json(json.loads(line))) == repr(outcome)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"status": "done"}, "done"),
        ({"curve": [[2, {}], [1, {}]]}, "ascend"),
        ({"curve": [[1, {"a": "no number"}]]}, "no number"),
        ({"colour": "red"}, "colour"),
        ({"drawn": 3}, "trial_000"),
    ],
)
def test_what_is_no_outcome_is_refused(change: dict[str, Any], named: str) -> None:
    values = planted_trials(1)[0].to_json()
    with pytest.raises(LaunchError, match=named):
        Outcome.from_json(values | change)
    with pytest.raises(LaunchError, match="trial"):
        Outcome.from_json({key: value for key, value in values.items() if key != "trial"})


def test_nan_and_failures_never_win() -> None:
    trials = [
        _trial("nan", math.nan),
        _trial("infinite", math.inf),
        _trial("failed", 0.9, status="failed"),
        _trial("low", 0.1),
        _trial("first of two", 0.5, status="stopped"),
        _trial("second of two", 0.5),
        _trial("none"),
    ]
    assert [outcome.trial for outcome in ranked(trials, METRIC, "max")] == ["first of two", "second of two", "low"]
    assert [outcome.trial for outcome in ranked(trials, METRIC, "min")] == ["low", "first of two", "second of two"]
    assert best(trials[:3], METRIC, "max") is None
    assert best([], METRIC, "min") is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    trials = [_trial(str(i), float(value), cost_s=float(cost)) for i, (value, cost) in enumerate(points)]
    expected = {
        str(i)
        for i, (value, cost) in enumerate(points)
        if not any(v >= value and c <= cost and (v > value or c < cost) for v, c in points)
    }
    front = pareto([*trials, _trial("failed", 9.0, status="failed", cost_s=0.0)], {METRIC: "max", "cost_s": "min"})
    assert {outcome.trial for outcome in front} == expected
    values = [outcome.value(METRIC) for outcome in front]
    assert values == sorted(values, reverse=True)


def test_a_front_needs_objectives() -> None:
    with pytest.raises(LaunchError, match="at least one objective"):
        pareto([], {})


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9))
def test_the_interval_is_students(values: list[float]) -> None:
    found = repeats(values)
    assert found.half_width is not None
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, len(values) - 1) * error, rel=1e-9, abs=1e-12)
    assert found.n == len(values)


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = [
        abs((found := repeats(list(random.normal(3, 1, 4)))).mean - 3) <= (found.half_width or 0) for _ in range(4000)
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_one_seed_has_no_interval_and_says_so() -> None:
    found = repeats([0.5])
    assert found.half_width is None
    assert not found.excludes_zero
    assert str(found) == "0.5000 (one seed: no interval)"
    assert str(repeats([0.4, 0.6])).startswith("0.5000 \N{PLUS-MINUS SIGN} 1.2706 (95 % of the mean, 2 seeds")
    for values in ([], [0.1, math.nan]):
        with pytest.raises(LaunchError, match="finite values"):
            repeats(values)


def test_pairs_are_of_equal_seeds() -> None:
    # Seeds differ by far more than the configs do: only pairs can tell.
    first, second = {0: 0.52, 1: 0.72, 2: 0.91, 7: 0.1}, {2: 0.90, 1: 0.70, 0: 0.50}
    found = paired(first, second)
    test = stats.ttest_rel([0.52, 0.72, 0.91], [0.50, 0.70, 0.90]).confidence_interval(0.95)
    assert (found.mean - (found.half_width or 0), found.mean + (found.half_width or 0)) == pytest.approx(tuple(test))
    assert found.n == 3
    assert found.excludes_zero
    assert not paired({0: 0.5, 1: 0.6}, {0: 0.6, 1: 0.5}).excludes_zero
    with pytest.raises(LaunchError, match="no seed in common"):
        paired({0: 1.0}, {1: 1.0})
