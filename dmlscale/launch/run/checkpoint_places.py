"""Where the checkpoints of a run are, from its config or from what a user names."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import yaml
from fsspec.utils import get_protocol

from dmlscale.config.load import check_config
from dmlscale.config.schema import Config
from dmlscale.data.storage.file_systems import is_local
from dmlscale.launch.errors import LaunchError
from dmlscale.redaction import shown
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.folder import NAME
from dmlscale.training.checkpoint.manifest import RECORD_FILE
from dmlscale.training.checkpoint.retention import Retention, Scores
from dmlscale.training.checkpoint.scratch import Scratch
from dmlscale.training.checkpoint.store import LocalStore, Store, open_store, record_in
from dmlscale.training.state import Record

# With copies of checkpoints that are far away; they are removed when the process ends.
_fetched: list[Scratch] = []


def place_of_checkpoints(config: Config, run_folder: Path) -> str:
    """The folder or URL of a run's checkpoints.

    Args:
        config: of the run, resolved.
        run_folder: where it is now.
    """
    asked = config.train.checkpoint_folder
    return str(run_folder / "checkpoints") if asked is None else f"{asked.rstrip('/')}/{config.run.name}"


def checkpoint_store(config: Config, run_folder: Path) -> Store:
    """The store of a run's checkpoints.

    Raises:
        CheckpointError, OSError: it cannot be opened.
    """
    return open_store(place_of_checkpoints(config, run_folder), config.train.checkpoint_storage_options)


def retention_of(config: Config) -> Retention:
    """Which of them are kept."""
    t = config.train
    return Retention(t.keep_checkpoints, t.keep_best, t.best_metric)


def absolute_place(place: str | None) -> str | None:
    """A folder by its absolute path; a URL as it is."""
    return place if place is None or not is_local(get_protocol(place)) else str(Path(_path(place)).absolute())


def newest_record(config: Config, run_folder: Path) -> Record | None:
    """Where a run stood at its newest checkpoint whose record can be read; None where it has no checkpoints.

    Raises:
        LaunchError: none can be read, they are in another place than the config says, or those there are another run's.
    """
    try:
        store = checkpoint_store(config, run_folder)
        problem: CheckpointError | None = None
        for name in reversed(store.complete()):
            try:
                record = record_in(store, name)
            except CheckpointError as error:
                problem = problem or error
                continue
            _check_own(record, config, run_folder, store.place)
            return record
    except (CheckpointError, OSError) as error:
        key = "run.folder" if config.train.checkpoint_folder is None else "train.checkpoint_folder"
        raise LaunchError(f"{key}: cannot look for checkpoints there: {error}") from error
    if problem is not None:
        raise LaunchError(str(problem))
    _check_not_moved(store.place, run_folder)
    return None


def find_checkpoint(named: str, *, best: bool = False) -> Path:
    """A checkpoint on this machine, from its own path or URL or from that of its run.

    Args:
        named: a checkpoint, a run, or a folder of checkpoints. What is far is copied here, until this process ends.
        best: take a run's best checkpoint instead of the newest.

    Raises:
        LaunchError: there is none.
    """
    try:
        return _far(named, best) if not is_local(get_protocol(named)) else _near(Path(_path(named)).absolute(), best)
    except (CheckpointError, OSError) as error:
        raise LaunchError(f"cannot take a checkpoint of {named}: {error}") from error


def _check_not_moved(place: str, run_folder: Path) -> None:
    """A run that has checkpoints elsewhere must not begin again because its config names a new place for them."""
    before = _config_of(run_folder)
    if before is None or shown(place_of_checkpoints(before, run_folder)) == place:
        return
    with suppress(CheckpointError, OSError):
        store = checkpoint_store(before, run_folder)
        if names := store.complete():
            raise LaunchError(
                f"{run_folder} has its checkpoints in {store.place}, train.checkpoint_folder now says {place}, where "
                f"there are none: copy {names[-1]} there, or set it back"
            )


def _check_own(record: Record, config: Config, run_folder: Path, place: str) -> None:
    """A new run must not go on from checkpoints that a run of the same name in another folder keeps there."""
    run = record.config.get("run")
    before = run.get("folder") if isinstance(run, dict) else None
    if config.train.checkpoint_folder is None or before == config.run.folder or _config_of(run_folder) is not None:
        return
    raise LaunchError(
        f"{place} holds checkpoints of a run of the same name in {before}, which is not that of {run_folder}: choose "
        f"another run.name or train.checkpoint_folder, or continue that run with run.folder={before}"
    )


def _config_of(run_folder: Path) -> Config | None:
    file = run_folder / "config.yaml"
    return check_config(yaml.safe_load(file.read_text()), str(file)) if file.is_file() else None


def _near(given: Path, best: bool) -> Path:
    if (given / RECORD_FILE).is_file():
        return given
    config = _config_of(given)
    if config is not None and config.train.checkpoint_folder is not None:
        return _of_store(checkpoint_store(config, given), f"{given}", config, best)
    folder = given / "checkpoints" if (given / "checkpoints").is_dir() else given
    return _of_store(LocalStore(folder), str(given), config, best)


def _far(url: str, best: bool) -> Path:
    parent, _, name = url.rstrip("/").rpartition("/")
    if NAME.fullmatch(name):
        return _here(open_store(parent, {}), name)
    return _of_store(open_store(url, {}), url, None, best)


def _of_store(store: Store, named: str, config: Config | None, best: bool) -> Path:
    if best:
        if config is None or not config.train.keep_best:
            raise LaunchError(f"{named} kept no best checkpoint: that takes a run with train.keep_best=1 or more")
        found = Scores(store, retention_of(config)).best()
        if found is None:
            raise LaunchError(f"no checkpoint of {named} was evaluated yet")
        return _here(store, found[0])
    if isinstance(store, LocalStore):
        from dmlscale.training import checkpoint

        newest = checkpoint.latest(store.folder)
        names = [] if newest is None else [newest.name]
    else:
        names = store.complete()
    if not names:
        raise LaunchError(f"{named} is neither a checkpoint nor a run with one")
    return _here(store, names[-1])


def _here(store: Store, name: str) -> Path:
    if isinstance(store, LocalStore):
        return store.folder / name
    scratch = Scratch()
    _fetched.append(scratch)
    return store.fetch(name, scratch.path)


def _path(place: str) -> str:
    return place.removeprefix("file://").removeprefix("local://")
