"""YAML and ``a.b=c`` overrides -> a checked `Config`, or all that is wrong with it at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from dmlscale.config.schema import Config
from dmlscale.config.secrets import literal_secrets


class ConfigError(ValueError):
    """Everything that is wrong with a config, one line each: dotted key, what is wrong, value, what to do."""


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Reads a YAML file, applies overrides, and checks the whole.

    Args:
        path: of the file.
        overrides: ``a.b=c`` each; the value is read as YAML, and a list is indexed by number (``losses.0.margin``).

    Raises:
        ConfigError: the file is missing or no YAML, or any key or value is wrong.
    """
    return check_config(override_values(read_values(path), overrides), str(path))


def read_values(path: str | Path) -> dict[str, Any]:
    """What a YAML file says, unchecked.

    Raises:
        ConfigError: the file is missing, no YAML, or holds no mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"no config file {file}")
    try:
        values = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not YAML: {_place_of(error)}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a mapping of settings, e.g. `train: {{steps: 100}}`")
    return values


def override_values(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``values`` with ``a.b=c`` overrides put in place; see `load_config`.

    Raises:
        ConfigError: an override that is no ``key=value``, leads through a value, or holds a secret.
    """
    for override in overrides:
        _override(values, override)
    return values


def check_config(values: dict[str, Any], where: str) -> Config:
    """A config from plain values.

    Args:
        values: nested mapping.
        where: they come from, for error messages.

    Raises:
        ConfigError: with every error in it; or, before all others, that secrets stand in it. No message holds one.
    """
    secrets = list(literal_secrets(values))
    if secrets:  # alone: the other messages tell values
        raise ConfigError(f"{where}:\n" + "\n".join(f"  {line}" for line in secrets))
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [_line(entry) for entry in error.errors(include_url=False)]
        raise ConfigError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"{override!r}: write an override as key=value, e.g. train.steps=200")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{key}: the value is not YAML; quote it") from None
    for line in literal_secrets({key: value}):
        raise ConfigError(line)
    set_value(values, key, value)


def _place_of(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the line itself, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it has characters that YAML does not take"
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem or error.context}"


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value at a dotted key, in place; a list is indexed by number.

    Raises:
        ConfigError: the key leads through a value, or to no place in a list.
    """
    *parents, last = key.split(".")
    at: Any = values
    if parents[:1] == ["losses"] and isinstance(values.get("losses"), dict):
        # A single loss written without the list: `losses.margin` and `losses.0.margin` both name it.
        parents = [p for p in parents if p != "0"]
    for parent in parents:
        at = at[_number(at, parent, key)] if isinstance(at, list) else at.setdefault(parent, {})
        if not isinstance(at, dict | list):
            raise ConfigError(f"{key}: {parent!r} is a value, not a group of settings")
    if isinstance(at, list):
        at[_number(at, last, key)] = value
    else:
        at[last] = value


def _number(items: list[Any], text: str, key: str) -> int:
    if text.isdigit() and int(text) < len(items):
        return int(text)
    raise ConfigError(f"{key}: {text!r} is no position in a list of {len(items)}; write e.g. losses.0.margin")


def _line(entry: Any) -> str:
    path = [part for part in entry["loc"] if part != "options" or entry["loc"][0] == "model"]
    key = ".".join(map(str, path))
    if entry["type"] == "extra_forbidden":
        siblings = _fields_at(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), siblings, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{key}: unknown key{hint} (there are: {', '.join(siblings)})"
    message = entry["msg"].removeprefix("Value error, ")
    if entry["type"] == "missing":
        return f"{key}: {message.lower()}"
    if not key:
        return message
    shown = "" if isinstance(entry["input"], dict | list | BaseModel) else f", got {entry['input']!r}"
    return f"{key}: {message}{shown}"


def _fields_at(path: list[Any]) -> list[str]:
    """Names of the keys that a group of settings has."""
    model: type[BaseModel] = Config
    for part in path:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        candidates = [annotation, *get_args(annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
