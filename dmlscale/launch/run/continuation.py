"""Whether a command goes on with a run that is there already: the same command again does, without being told to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmlscale.config.load import ConfigError, check_config, read_values
from dmlscale.config.schema import Config
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.run.lease import is_driven
from dmlscale.launch.run.run_folder import CONFIG_FILE
from dmlscale.launch.run.run_state import newest_step, read_state

# What says how, where and with how much telling a run is done, but not what comes out of it. The same command may
# change these; everything else only with --resume, in so many words.
_MAY_CHANGE = re.compile(
    r"resources\..*|tracking\..*|run\.(name|folder)|"
    r"train\.(log_every|checkpoint_every|checkpoint_every_minutes|keep_checkpoints|keep_best|best_metric|"
    r"checkpoint_storage_options.*|async_checkpoints|on_checkpoint_error|max_skipped_steps)|"
    r"data\.(storage_options.*|cache_folder|cache_gb|retry_seconds|loader_threads)|"
    r"evaluation\.(batch_size|gallery_queries|report|raw_pixels)"
)
_LOOKED_AT = 20  # the newest folders, for a run without a name


def continues(config: Config, folder: Path) -> bool:
    """Whether the folder holds an unfinished run of these settings, with which the command goes on.

    Args:
        config: resolved.
        folder: of the run.

    Returns:
        False if it holds none.

    Raises:
        LaunchError: it holds one that is finished, or one of other settings.
    """
    if not (folder / CONFIG_FILE).exists():
        return False
    state = read_state(folder)
    if state is None:
        raise LaunchError(f"{folder} holds a run already: add --resume to continue it, or choose another run.name")
    differing = _differing(config, folder)
    if differing:
        raise LaunchError(
            f"{folder} holds a run already, of other settings ({_short(differing)}): add --resume to continue it with "
            "these, set them back, or choose another run.name"
        )
    if state.is_finished:
        raise LaunchError(
            f"{folder} holds a run already, finished at step {state.step}: choose another run.name, or look at it with "
            f"`dmlscale evaluate {folder}`"
        )
    return True


def unfinished_twin(config: Config, name_start: str) -> str | None:
    """A line that tells of an unfinished run of these settings that nobody drives, for a command that names no run.

    Args:
        config: resolved, with a new name.
        name_start: how the names begin that such commands make.
    """
    folders = sorted(Path(config.run.folder).glob(f"{name_start}-*"), reverse=True)
    for folder in folders[:_LOOKED_AT]:
        state = read_state(folder)
        if state is None or state.is_finished or folder.name == config.run.name or is_driven(folder):
            continue
        if not _differing(config, folder):
            step = newest_step(folder)
            return (
                f"{folder} is an unfinished run of these settings, at step {step}: run.name={folder.name} continues it"
            )
    return None


def _differing(config: Config, folder: Path) -> list[str]:
    """Settings that are not as they were, as ``key=old there, new here``."""
    file = folder / CONFIG_FILE
    try:
        before = check_config(read_values(file), str(file))
    except ConfigError as error:
        return [f"{file} cannot be read: {str(error).splitlines()[-1].strip()}"]
    old, new = dict(_flat(before.model_dump(mode="json"))), dict(_flat(config.model_dump(mode="json")))
    keys = [key for key in old | new if old.get(key) != new.get(key) and not _MAY_CHANGE.fullmatch(key)]
    return [f"{key}={old.get(key)} there, {new.get(key)} here" for key in keys]


def _short(differing: list[str]) -> str:
    more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
    return "; ".join(differing[:5]) + more


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys; an empty group is a value."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found = False
    for key, value in items:
        found = True
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    if not found:
        yield prefix, values
