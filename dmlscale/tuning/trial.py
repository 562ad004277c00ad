"""One trial: what its driver does on the cluster's head, and what its folder tells afterwards."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlscale.config.load import check_config
from dmlscale.config.schema import Config
from dmlscale.launch import preflight
from dmlscale.launch.build import open_index
from dmlscale.launch.run import run_folder
from dmlscale.launch.run.progress import entries_of
from dmlscale.launch.run.whole_file import write_whole
from dmlscale.launch.task import Task
from dmlscale.launch.tracked import start_run
from dmlscale.tracking.run_file import known_run
from dmlscale.tuning.loss_keys import NAME
from dmlscale.tuning.outcomes import Outcome, Status

TRIAL_FILE = "trial.json"  # what was drawn, and its run in the tracker
END_FILE = "end.json"  # how it ended


@dataclass(frozen=True)
class Place:
    """Where a stage of a sweep lives, for its trials.

    Args:
        folder: of the stage; each trial's run has its folder in it.
        tracking_uri: of the store.
        parent_run: id of the sweep's run there.
        command: that started the sweep.
        stage: its name, for filtering.
        tags: for all its runs.
    """

    folder: str
    tracking_uri: str
    parent_run: str
    command: str
    stage: str
    tags: dict[str, str]


def train_trial(name: str, values: dict[str, Any], drawn: dict[str, Any], place: Place) -> dict[str, float]:
    """Trains one trial in a Tune session, from its own newest checkpoint if it has one.

    Args:
        name: of the trial, the same after a resume.
        values: complete config values.
        drawn: the searched ones, by dotted key.
        place: of its stage.

    Returns:
        The last figures, with ``step`` and ``cost_s``.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    from dmlscale.launch.ray_train import fit

    started = time.monotonic()
    config, folder = open_trial(name, values, place)
    index = open_index(config)
    run_id = start_run(
        config,
        index,
        place.tracking_uri,
        folder,
        place.command,
        tags={**place.tags, "mlflow.parentRunId": place.parent_run, "sweep.stage": place.stage, "sweep.trial": name},
        description=f" ({place.stage})",
        without=("run.name", "run.folder", *_unsearched_options(config, drawn)),
        if_unreachable="continue",  # the sweep has begun: a store that is away does not end it
    )
    write_json(folder / TRIAL_FILE, {"drawn": drawn, "run_id": run_id})
    preflight.check_cheap(config)
    preflight.check_data(config, index, say=lambda text: None)
    run_folder.write_config(config, index, folder)
    task = Task("train", config.model_dump(mode="json"), str(folder), None, place.tracking_uri, run_id)
    result = fit(task, config.resources, callbacks=[TuneReportCallback()])
    outcome = read_outcome(folder)
    write_json(
        folder / END_FILE,
        {"status": "finished", "reason": "", "seconds": time.monotonic() - started, "raw_pixels": result["raw_pixels"]},
    )
    return {**outcome.metrics, "step": float(outcome.steps)}


def _unsearched_options(config: Config, drawn: dict[str, Any]) -> tuple[str, ...]:
    """Parameters that a drawn loss brings and that were not searched: MLflow's comparison would draw them as axes.

    The run's config.yaml has them.
    """
    if NAME not in drawn:
        return ()
    (loss,) = config.losses
    return tuple(f"loss.{option}" for option in loss.options if f"losses.{option}" not in drawn)


def open_trial(name: str, values: dict[str, Any], place: Place) -> tuple[Config, Path]:
    """The trial's config and folder; a folder that is there already is continued."""
    given = check_config(values, f"trial {name}")
    run = given.run.model_copy(update={"name": name, "folder": place.folder})
    train = given.train
    if train.checkpoint_folder is not None:  # trials of all sweeps have the same names
        own = "/".join([train.checkpoint_folder.rstrip("/"), *Path(place.folder).parts[-2:]])
        train = train.model_copy(update={"checkpoint_folder": own})
    config = run_folder.resolve(given.model_copy(update={"run": run, "train": train}), name)
    return config, run_folder.open_folder(config, resume=True)


def read_outcome(folder: Path) -> Outcome:
    """What a trial's folder says of it."""
    told = read_json(folder / TRIAL_FILE)
    end = read_json(folder / END_FILE)
    curve: dict[int, dict[str, float]] = {}
    for entry in entries_of(folder / "progress.jsonl"):
        if "evaluation" in entry:
            curve[entry["step"]] = {**entry["evaluation"], "cost_s": entry["cost_s"]}
    points = tuple(sorted(curve.items()))
    known = known_run(folder)  # a store that was away at the trial's start has made its run later
    return Outcome(
        trial=folder.name,
        status=end.get("status", "running" if told else "pending"),
        reason=end.get("reason", ""),
        drawn=told.get("drawn", {}),
        curve=points,
        seconds=end.get("seconds", points[-1][1]["cost_s"] if points else 0.0),
        run_id=told.get("run_id") or (known.run_id if known else ""),
        folder=str(folder),
    )


def read_outcomes(stage_folder: Path) -> list[Outcome]:
    """All trials of a stage, by name."""
    return [read_outcome(path) for path in sorted(stage_folder.glob("*/")) if (path / TRIAL_FILE).is_file()]


def begin_trial(folder: Path, drawn: dict[str, Any]) -> None:
    """Notes what was drawn, and forgets how an earlier attempt ended: a kill of the sweep ends workers with errors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / END_FILE).unlink(missing_ok=True)
    if not (folder / TRIAL_FILE).exists():
        write_json(folder / TRIAL_FILE, {"drawn": drawn, "run_id": ""})


def end_trial(folder: Path, status: Status, reason: str, seconds: float) -> None:
    """Notes how a trial ended that could not do so itself."""
    write_json(folder / END_FILE, {"status": status, "reason": reason, "seconds": seconds})


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a file at once or not at all."""
    write_whole(path, json.dumps(values, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """What is in a file; nothing where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}
