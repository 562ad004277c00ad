"""How much each searched setting matters for a metric, whichever way the trials were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder

from dmlscale.tuning.outcomes import Outcome, with_value
from dmlscale.tuning.searched import SearchedKey, searched_keys

FEWEST_TRIALS = 6
_FEWEST_WITH_KEY = 4  # of a conditional key: shuffled among fewer, its values hardly move
_TREES, _SHUFFLES = 100, 10


@dataclass(frozen=True)
class KeyImportance:
    """What one searched key matters.

    Args:
        key: dotted, as `losses.margin`.
        mean: squared error that a forest makes more when the key's values are shuffled among the trials that have it,
            over the metric's variance among those that count. Near 0: it does not matter. It may be slightly negative.
        spread: standard deviation over shuffles.
        num_trials: trials that have the key.
    """

    key: str
    mean: float
    spread: float
    num_trials: int


@dataclass(frozen=True)
class Importance:
    """What the searched keys matter for a metric.

    Args:
        metric: which.
        keys: most important first.
        num_trials: trials that counted.
        explained: share of the metric's variance that the forest tells of trials that it has not seen (out of bag).
            At 0 or below, it has learnt nothing that holds, and the order of keys means nothing.
        reason: why there are no keys; empty where there are.
        left_out: keys that vary, but that too few trials have.
    """

    metric: str
    keys: tuple[KeyImportance, ...] = ()
    num_trials: int = 0
    explained: float = 0.0
    reason: str = ""
    left_out: tuple[str, ...] = ()


def importance(outcomes: Sequence[Outcome], metric: str, *, seed: int = 0) -> Importance:
    """Permutation importance of each searched key, by a random forest over the trials.

    The steps that each trial trained are a column beside the settings, which is not reported: otherwise whatever
    the scheduler stopped early would seem to be bad by its settings alone.

    Args:
        outcomes: trials; those that failed or have no finite metric do not count.
        metric: what is to be explained.
        seed: of the forest and the shuffles. The result is a function of the arguments alone.

    Returns:
        The keys with at least two values; none, with the reason, where trials or differences are too few.
    """
    counted = with_value(outcomes, metric)
    values = np.array([outcome.value(metric) for outcome in counted])
    keys = [key for key in searched_keys(counted) if key.varies]
    if len(counted) < FEWEST_TRIALS:
        reason = f"{len(counted)} trials with {metric}; it takes {FEWEST_TRIALS} to tell what matters"
    elif np.ptp(values) == 0:
        reason = f"{metric} is the same in all {len(counted)} trials"
    elif not keys:
        reason = "no setting differs between the trials"
    else:
        return _measured(counted, values, keys, metric, seed)
    return Importance(metric, num_trials=len(counted), reason=reason)


def _measured(
    counted: Sequence[Outcome], values: NDArray[np.float64], keys: Sequence[SearchedKey], metric: str, seed: int
) -> Importance:
    steps = [[float(outcome.steps)] for outcome in counted]
    settings = np.array([[key.position(outcome) for key in keys] for outcome in counted])
    columns = np.hstack([settings, steps])
    standard = (values - values.mean()) / values.std()  # so that a squared error is a share of the variance
    model = _forest(keys, seed).fit(columns, standard)
    found: list[KeyImportance] = []
    left_out: list[str] = []
    for column, key in enumerate(keys):
        has = ~np.isnan(settings[:, column])
        if has.sum() < _FEWEST_WITH_KEY or np.ptp(settings[has, column]) == 0:
            left_out.append(key.key)
            continue
        drops = _drops(model, columns[has], standard[has], column, seed)
        found.append(KeyImportance(key.key, float(drops.mean()), float(drops.std()), int(has.sum())))
    found.sort(key=lambda entry: -entry.mean)
    explained = float(model[-1].oob_score_)
    reason = "" if found else f"no setting that varies is had by {_FEWEST_WITH_KEY} trials"
    return Importance(metric, tuple(found), len(counted), explained, reason, tuple(left_out))


def _drops(
    model: Pipeline, columns: NDArray[np.float64], values: NDArray[np.float64], column: int, seed: int
) -> NDArray[np.float64]:
    """What each shuffle of one column adds to the squared error."""

    def score(model: Pipeline, shuffled: NDArray[np.float64], values: NDArray[np.float64]) -> float:
        whole = columns.copy()
        whole[:, column] = shuffled[:, 0]
        return -float(np.mean((model.predict(whole) - values) ** 2))

    # It shuffles each column that it is given, one after the other, so it is given the one in question alone.
    result = permutation_importance(
        model, columns[:, [column]], values, scoring=score, n_repeats=_SHUFFLES, random_state=seed
    )
    return np.asarray(result.importances[0])


def _forest(keys: Sequence[SearchedKey], seed: int) -> Pipeline:
    """Columns: the keys' positions, then steps. NaN where a trial lacks the key: the median, or none of the names."""
    numeric = [column for column, key in enumerate(keys) if not key.names] + [len(keys)]
    named = [column for column, key in enumerate(keys) if key.names]
    names = [np.arange(len(keys[column].names), dtype=float) for column in named]
    encoded = ColumnTransformer(
        [
            ("numbers", SimpleImputer(strategy="median"), numeric),
            ("names", OneHotEncoder(categories=names, handle_unknown="ignore", sparse_output=False), named),
        ]
    )
    forest = RandomForestRegressor(_TREES, min_samples_leaf=2, oob_score=True, random_state=seed)
    return make_pipeline(encoded, forest)
