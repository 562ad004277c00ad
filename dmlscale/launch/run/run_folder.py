"""The folder of a run: new, or one to continue, and never an accident between the two."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import get_args

import yaml

from dmlscale.config.load import check_config
from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.data.planning.mined_plan import MinedSampling
from dmlscale.data.storage.storage import Storage
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.run.checkpoint_places import absolute_place, newest_record
from dmlscale.launch.run.whole_file import write_whole
from dmlscale.launch.task import HAND_OVER_FILE, STOP_FILE

CONFIG_FILE = "config.yaml"
DATASET_FILE = "dataset.json"
# What decides the order of samples, always and with some samplings.
_ORDER_KEYS = (
    "data.train_split",
    "data.validation_classes",
    "data.classes_per_batch",
    "data.samples_per_class",
    "data.num_streams",
    "data.sampling",
    "data.max_samples_per_class",
    "data.window_shards",
    "run.seed",
)
_SAMPLING_KEYS = {
    **dict.fromkeys(
        get_args(MinedSampling), ("data.mine_every", "data.mine_candidates", "data.mine_negatives", "evaluation.metric")
    ),
    "by_frequency": ("data.frequency_power",),
    "hierarchical": ("data.super_classes_per_batch",),
}


def resolve(config: Config, config_name: str) -> Config:
    """The config with a run name and with absolute paths, as workers need it."""
    values = config.model_dump(mode="json")
    values["run"]["name"] = config.run.name or f"{config_name}-{datetime.now():%Y%m%d-%H%M%S}"
    values["run"]["folder"] = str(Path(config.run.folder).absolute())
    values["train"]["checkpoint_folder"] = absolute_place(config.train.checkpoint_folder)
    values["data"]["path"] = Storage.open(config.data.path).root
    return check_config(values, "the resolved config")


def make_folder(config: Config) -> Path:
    """Makes the run's folder, unless it is there.

    Raises:
        LaunchError: it cannot be written.
    """
    assert config.run.name is not None
    folder = Path(config.run.folder) / config.run.name
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write {folder}")
        (folder / ".writable").touch()
        (folder / ".writable").unlink(missing_ok=True)  # the same command may be given twice at once
    except OSError as error:
        raise LaunchError(f"run.folder: cannot write {folder}: {error}; choose another run.folder") from error
    return folder


def folder_of(named: str, checkpoint: Path) -> Path:
    """The folder of a checkpoint's run, or what there is instead of it.

    Args:
        named: what the user named: a run, or a checkpoint.
        checkpoint: the one found there.

    Returns:
        That of the run, if it was named or has the checkpoint in it; else the one beside the checkpoint. A checkpoint
        that was copied here has a folder of its own.
    """
    if (Path(named) / CONFIG_FILE).is_file():
        return Path(named).absolute()
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent


def open_folder(config: Config, *, resume: bool) -> Path:
    """Makes the run's folder, or opens it to continue.

    Raises:
        LaunchError: it cannot be written, there are checkpoints of this name that nobody asked to continue, or it was
            made with other settings of the data.
    """
    folder = make_folder(config)
    if not resume and (newest := newest_record(config, folder)) is not None:
        raise LaunchError(
            f"the run {config.run.name} has a checkpoint of step {newest.step}, but no {CONFIG_FILE} in {folder}: add "
            "--resume to go on from there, or choose another run.name"
        )
    for request in (STOP_FILE, HAND_OVER_FILE):
        (folder / request).unlink(missing_ok=True)  # of an earlier driver, which was killed
    _check_same_data(config, folder)
    return folder


def check_same_dataset(folder: Path, index: Index) -> None:
    """Whether a run that is continued has the dataset that it began with.

    Raises:
        LaunchError: the dataset has changed.
    """
    path = folder / DATASET_FILE
    if not path.is_file():
        return
    before = json.loads(path.read_text())["version"]
    if before != index.description["version"]:
        raise LaunchError(
            f"{index.storage} is not the dataset that {folder} was started with ({path}): a continued run must see the "
            "same samples; bring that one back, or choose another run.name"
        )


def write_config(config: Config, index: Index, folder: Path) -> None:
    """Keeps the resolved config and what the dataset says of itself; from here on the folder holds a run."""
    write_whole(folder / DATASET_FILE, json.dumps(index.description, indent=2) + "\n")
    write_whole(folder / CONFIG_FILE, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _check_same_data(config: Config, folder: Path) -> None:
    """A continued run must see the same batches: what decides them may not change."""
    newest = newest_record(config, folder)
    if newest is None:
        return
    before = check_config(newest.config, f"the newest checkpoint of {folder}")
    for key in _ORDER_KEYS + _SAMPLING_KEYS.get(config.data.sampling, ()):
        section, name = key.split(".")
        old, new = getattr(getattr(before, section), name), getattr(getattr(config, section), name)
        if old != new:
            raise LaunchError(
                f"{folder} was started with {key}={old}, now it is {new}: a continued run must keep the order of its "
                "samples; set it back, or choose another run.name"
            )
