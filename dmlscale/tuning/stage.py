"""One stage of a sweep as a Ray Tune experiment: many trainings, as many at a time as fit."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.search.optuna import OptunaSearch

from dmlscale.config.schema import Config
from dmlscale.tuning.config import SweepConfig
from dmlscale.tuning.early_stop import RememberingASHA, grace_steps, stopper
from dmlscale.tuning.trial import END_FILE, Place, begin_trial, end_trial, read_json, read_outcome, train_trial
from dmlscale.tuning.watch import StageWatch, Told

Trial = dict[str, Any]
"""What a trial is given: its ``name``, complete config ``values``, and what was ``drawn``."""

_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the trials' own folders hold all of it
    "TUNE_GLOBAL_CHECKPOINT_S": "2",  # what a kill of the sweep may forget
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # its boxes come even at verbose=0
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
}


@dataclass(frozen=True)
class Stage:
    """What is to be run.

    Args:
        place: where its trials live.
        settings: of the sweep.
        trials: all of them; None where the searcher draws them as it goes.
        draw: one trial, for a searcher that draws; see `plan.OptunaDraw`.
        config: of any of the trials; says how long they are.
        at_once: trials at a time.
    """

    place: Place
    settings: SweepConfig
    trials: Sequence[Trial] | None
    draw: Callable[[optuna.Trial], dict[str, Any]] | None
    config: Config
    at_once: int

    @property
    def num_trials(self) -> int:
        """How many there will be."""
        return self.settings.trials if self.trials is None else len(self.trials)


def run_stage(stage: Stage, watch: StageWatch, *, scheduled: bool) -> bool:
    """Runs the trials that have not ended yet. What became of them is in their folders.

    Args:
        stage: to run, or to go on with.
        watch: is told what happens.
        scheduled: whether trials may be stopped before their end.

    Returns:
        Whether all trials have ended; False if someone asked the sweep to stop.
    """
    os.environ.update({key: value for key, value in _SETTINGS.items() if key not in os.environ})
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = Path(stage.place.folder) / "tune"
    # Nothing of the workers' resources: drivers only wait, and would hold what their own workers wait for.
    driver = tune.with_resources(_driver_of(stage.place), {"CPU": 0, "node:__internal_head__": 0.001})
    if tune.Tuner.can_restore(str(storage)):
        tuner = tune.Tuner.restore(str(storage), trainable=driver, resume_unfinished=True)
    else:
        tuner = _new_tuner(stage, driver, storage, scheduled)
    with watch:
        results = tuner.fit()
    num_ended = results.num_terminated + results.num_errors
    has_budget = scheduled and stage.settings.time_budget_minutes is not None
    is_short = len(results) < stage.num_trials and not has_budget
    return not (watch.was_interrupted or num_ended < len(results) or is_short)


def _new_tuner(stage: Stage, driver: Any, storage: Path, scheduled: bool) -> tune.Tuner:
    given, settings = stage.trials, stage.settings
    return tune.Tuner(
        driver,
        param_space=None if given is None else {"trial": tune.grid_search(list(given))},
        tune_config=tune.TuneConfig(
            num_samples=stage.num_trials if given is None else 1,
            max_concurrent_trials=stage.at_once,
            search_alg=None if stage.draw is None else _searcher(stage),
            scheduler=_asha(stage) if scheduled and settings.scheduler == "asha" else None,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=storage.name,
            storage_path=str(storage.parent),
            verbose=0,
            callbacks=[Told(stage.place.folder)],
            stop=stopper(settings, stage.config.train.steps) if scheduled else None,
        ),
    )


def name_of(config: Mapping[str, Any], trial_id: str) -> str:
    """The name of a trial from what Tune gave it."""
    given = config.get("trial", config)
    # A searcher that is set back by a kill may draw the same number again, with other values.
    return str(given["name"]) if given.get("is_unique", True) else f"{given['name']}-{trial_id}"


def _driver_of(place: Place) -> Callable[[dict[str, Any]], None]:
    def driver(config: dict[str, Any]) -> None:
        name = name_of(config, tune.get_context().get_trial_id())
        given = config.get("trial", config)
        folder = Path(place.folder) / name
        # Ended after the last thing that Tune remembers; what failed then may have done so by the kill.
        if read_json(folder / END_FILE).get("status") in ("finished", "stopped"):
            outcome = read_outcome(folder)
            tune.report({**outcome.metrics, "step": outcome.steps})
            return
        begin_trial(folder, given["drawn"])
        started = time.monotonic()
        try:
            train_trial(name, given["values"], given["drawn"], place)
        except RayActorError:  # the sweep is stopping this trial, or was killed: the watch knows
            raise
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            end_trial(folder, "failed", reason[0], time.monotonic() - started)
            raise

    return driver


def _searcher(stage: Stage) -> OptunaSearch:
    settings = stage.settings
    metrics, modes = [settings.metric], [settings.mode]
    if settings.second_objective:
        metrics, modes = [*metrics, "cost_s"], [*modes, "min"]
    many = len(metrics) > 1
    return OptunaSearch(
        stage.draw, metric=metrics if many else metrics[0], mode=modes if many else modes[0], seed=settings.seed
    )


def _asha(stage: Stage) -> RememberingASHA:
    steps, settings = stage.config.train.steps, stage.settings
    return RememberingASHA(
        stage.place.folder,
        time_attr="step",
        metric=settings.metric,
        mode=settings.mode,
        max_t=steps - 1,  # no rung at the last step: a trial that reports it has still to write its figures
        grace_period=grace_steps(stage.config, settings),
        reduction_factor=settings.reduction_factor,
        stop_last_trials=False,
    )
