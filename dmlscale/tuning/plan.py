"""The trials of each stage of a sweep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import optuna

from dmlscale.config.load import ConfigError, check_config
from dmlscale.config.schema import Config
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.preflight import check_terms
from dmlscale.tuning.config import Sweep
from dmlscale.tuning.draw import grid_draws, optuna_space, random_draws
from dmlscale.tuning.early_stop import grace_steps
from dmlscale.tuning.selection import check_metric, check_selection, final_values, trial_values

BEST, DEFAULTS = "best", "defaults"
_TRIED = 64  # draws of a searcher that are looked at before it starts


def check_sweep(sweep: Sweep) -> tuple[list[dict[str, Any]] | None, Config]:
    """Finds all that is wrong with a sweep before there is a folder, a run or a cluster.

    Returns:
        What `search_trials` does, and a config of a trial, with the base's settings.

    Raises:
        LaunchError: says what.
    """
    check_selection(sweep)
    check_metric(sweep)
    any_trial = check_config(trial_values(sweep.base, sweep.settings), sweep.file)
    if sweep.settings.scheduler == "asha":
        grace_steps(any_trial, sweep.settings)
    return search_trials(sweep), any_trial


def search_trials(sweep: Sweep) -> list[dict[str, Any]] | None:
    """All trials of the search; None where the searcher draws them as it goes.

    Raises:
        LaunchError: a combination that the config refuses, or a grid over a continuous range.
    """
    settings = sweep.settings
    if settings.searcher == "grid":
        draws = grid_draws(sweep.space, sweep.base)
    elif settings.searcher == "random":
        draws = random_draws(sweep.space, sweep.base, settings.trials, settings.seed)
    else:
        _check_all(sweep, random_draws(sweep.space, sweep.base, _TRIED, settings.seed))
        return None
    _check_all(sweep, draws)
    return [_trial(number, values, drawn, sweep) for number, (values, drawn) in enumerate(draws)]


class OptunaDraw:
    """Draws one trial; what Ray's searcher calls, and keeps in its state files."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self._space = sweep, optuna_space(sweep.space, sweep.base)

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        """The trial as Tune shall hand it out."""
        draw = self._space(trial)
        return {"trial": {**_trial(trial.number, draw["values"], draw["drawn"], self._sweep), "is_unique": False}}


def final_trials(sweep: Sweep, best: dict[str, Any]) -> list[dict[str, Any]]:
    """The best settings and the base's, each with every seed; seed by seed, so that a stop leaves pairs.

    Args:
        sweep: what was asked.
        best: complete config values.
    """
    first = sweep.base_config.run.seed
    return [
        {
            "name": f"{which}-seed-{seed}",
            "values": final_values(values, seed, with_report=which == BEST and seed == first),
            "drawn": {"settings": which, "run.seed": seed},
        }
        for seed in range(first, first + sweep.settings.repeats)
        for which, values in ((BEST, best), (DEFAULTS, sweep.base))
    ]


def _trial(number: int, values: dict[str, Any], drawn: dict[str, Any], sweep: Sweep) -> dict[str, Any]:
    return {"name": f"trial-{number:03d}", "values": trial_values(values, sweep.settings), "drawn": drawn}


def _check_all(sweep: Sweep, draws: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for values, drawn in draws:
        try:
            check_terms(check_config(trial_values(values, sweep.settings), sweep.file))
        except (ConfigError, LaunchError) as error:
            shown = ", ".join(f"{key}={value}" for key, value in drawn.items())
            raise LaunchError(f"space: the combination {shown} makes no config:\n{error}") from None
