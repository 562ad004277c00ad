"""Paths that must mean the same on every node: a job runs in a copy of the working directory that is thrown away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmlscale.config.load import override_values
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs.command import Command, Settings

_SQLITE = "sqlite:///"
# Options of sources that name files. `shards` may be a list or hold wildcards, which the source itself checks.
_SOURCE_PATHS = ("path", "root", "fonts")


def placed(command: Command, settings: Settings | None, shared: str | None) -> Command:
    """The command with every relative path put below the shared folder.

    Args:
        command: as given.
        settings: what its file says, if that is known.
        shared: absolute path of a folder that all nodes have; None if the user named none.

    Raises:
        LaunchError: a path is relative and there is no shared folder; with the keys and what to do.
    """
    if shared is not None and not Path(shared).is_absolute():
        raise LaunchError(f"--shared {shared}: give the absolute path that the folder has on the nodes")
    settings_paths = _by_key(command, settings)
    relative = {key: path for key, path in settings_paths.items() if _is_relative(path)}
    words = [path for path in _words_with_paths(command) if _is_relative(path)]
    if shared is None and (relative or words):
        listed = ", ".join([f"{key}={path}" for key, path in relative.items()] + words)
        raise LaunchError(
            f"{listed}: a relative path would be lost with the job's copy of the working directory. Name a folder that "
            "all nodes share, by --shared /mnt/shared, below which relative paths are then; or write absolute paths"
        )
    if shared is None:
        return command
    if command.config_file is None:
        command = replace(command, subject=(*command.subject[:-1], _below(shared, command.subject[-1])))
    if "--report" in command.options:
        command = replace(command, options=("--report", _below(shared, command.options[-1])))
    return command.with_overrides(*(f"{key}={_below(shared, path)}" for key, path in relative.items()))


def folders_of(command: Command, settings: Settings | None) -> dict[str, str]:
    """Absolute folders that the job writes, by what they are: all nodes must share them.

    Args:
        command: with its paths placed.
        settings: of that command.
    """
    if command.name in ("train", "tune") and settings is not None:
        return {"run.folder": settings.config.run.folder}
    # Beside what is named: it need not be there yet, and nothing strange should lie in it.
    word = {"pack": "path", "evaluate": "checkpoint"}[command.name]
    report = {"--report": str(Path(command.options[-1]).parent)} if "--report" in command.options else {}
    return {word: str(Path(command.subject[-1]).parent)} | report


def _by_key(command: Command, settings: Settings | None) -> dict[str, str]:
    """Paths of the config by the override that sets them."""
    if settings is None or command.config_file is None:
        return _of_overrides(command)
    config, prefix = settings.config, settings.prefix
    paths: dict[str, Any] = {"run.folder": config.run.folder, "data.path": settings.data_path}
    if config.data.source is not None:
        paths |= {f"data.source.{key}": config.data.source.options.get(key) for key in _SOURCE_PATHS}
    if config.tracking.uri is not None and config.tracking.uri.startswith(_SQLITE):
        paths["tracking.uri"] = config.tracking.uri
    return {prefix + key: path for key, path in paths.items() if isinstance(path, str)}


def _of_overrides(command: Command) -> dict[str, str]:
    """Of evaluate, what overrides replace in the checkpoint's record; of pack, the source's options."""
    values = override_values({}, command.overrides)
    keys = _SOURCE_PATHS if command.name == "pack" else ("data.path", "run.folder")
    found = {key: _at(values, key) for key in keys}
    return {key: path for key, path in found.items() if isinstance(path, str)}


def _at(values: Mapping[str, Any], key: str) -> Any:
    at: Any = values
    for part in key.split("."):
        at = at.get(part) if isinstance(at, Mapping) else None
    return at


def _words_with_paths(command: Command) -> list[str]:
    """The checkpoint of evaluate and its ``--report``, and where pack writes."""
    words = [] if command.config_file is not None else [command.subject[-1]]
    return [*words, command.options[-1]] if "--report" in command.options else words


def _is_relative(path: str) -> bool:
    path = path.removeprefix(_SQLITE)
    return "://" not in path and not Path(path).is_absolute()


def _below(shared: str, path: str) -> str:
    if not _is_relative(path):
        return path
    if path.startswith(_SQLITE):
        return f"{_SQLITE}{Path(shared) / path.removeprefix(_SQLITE)}"
    return str(Path(shared) / path)
