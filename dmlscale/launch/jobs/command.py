"""The command that a cluster is to run, and what its file says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from dmlscale.config.load import check_config, load_config, override_values
from dmlscale.config.schema import Config
from dmlscale.data.sources import SOURCES
from dmlscale.launch import preflight
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.run.checkpoint_places import find_checkpoint
from dmlscale.training import checkpoint

CommandName = Literal["train", "tune", "evaluate", "pack"]


@dataclass(frozen=True)
class Command:
    """``dmlscale <name> <subject> <overrides> <options>``.

    Args:
        name: of the command.
        subject: config file of train and tune; checkpoint of evaluate; source and path of pack.
        overrides: ``key=value`` each.
        options: further words, as ("--resume",) or ("--report", "folder").
    """

    name: CommandName
    subject: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """As on the command line, without ``dmlscale``."""
        return [self.name, *self.subject, *self.overrides, *self.options]

    @property
    def config_file(self) -> str | None:
        """Of train and tune; the others have none."""
        return self.subject[0] if self.name in ("train", "tune") else None

    def with_overrides(self, *more: str) -> Command:
        """With further ones, which win."""
        return replace(self, overrides=(*self.overrides, *more))


@dataclass(frozen=True)
class Settings:
    """What a command's file says, checked.

    Args:
        config: of the run, or of each of a sweep's trials.
        name: of the run or the sweep; None if none was chosen.
        name_key: override that sets it: ``run.name`` or ``sweep.name``.
        data_path: as it was written, not yet made absolute.
        prefix: of the config's keys in overrides: "" or ``base.``.
    """

    config: Config
    name: str | None
    name_key: str
    data_path: str
    prefix: str


SettingsReader = Callable[[str, Sequence[str]], Settings]


def read_train(path: str, overrides: Sequence[str]) -> Settings:
    """The settings of ``dmlscale train``.

    Raises:
        ConfigError: with everything that is wrong.
    """
    config = load_config(path, overrides)
    return Settings(config, config.run.name, "run.name", config.data.path, "")


def settings_of(command: Command, read: SettingsReader) -> Settings | None:
    """What can be known of a command here, checked as far as that goes; None for pack.

    For evaluate it is the record of the checkpoint, if the checkpoint can be read from here: it may lie on storage
    that only the cluster has.

    Raises:
        ConfigError: wrong keys or values.
        LaunchError: settings that cannot work, or an unknown source.
    """
    overrides = list(command.overrides)
    if command.name == "pack":
        _check_source(command.subject[0], overrides)
        return None
    if command.name == "evaluate":
        return _of_checkpoint(command.subject[0], overrides)
    settings = read(command.subject[0], overrides)
    if "--resume" in command.options and settings.name is None:
        raise LaunchError(f"--resume needs the name of what to continue: add {settings.name_key}=...")
    preflight.check_cheap(settings.config)
    return settings


def chosen_name(command: Command, settings: Settings | None) -> str:
    """A name for the run, known before the job is: the one asked for, or one of the file's name and the time."""
    if settings is not None and settings.name is not None and command.config_file is not None:
        return settings.name
    stem = command.name if command.config_file is None else Path(command.config_file).stem
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-") or command.name
    return f"{plain}-{datetime.now():%Y%m%d-%H%M%S}"


def _of_checkpoint(path: str, overrides: list[str]) -> Settings | None:
    override_values({}, overrides)
    try:
        found = find_checkpoint(path)
    except LaunchError:
        return None
    values = override_values(checkpoint.read_record(found).config, overrides)
    config = check_config(values, str(found / "record.json"))
    return Settings(config, config.run.name, "run.name", config.data.path, "")


def _check_source(name: str, overrides: list[str]) -> None:
    override_values({"name": name}, overrides)
    if name not in SOURCES:
        raise LaunchError(f"no source {name!r}: there are {', '.join(sorted(SOURCES))}")
