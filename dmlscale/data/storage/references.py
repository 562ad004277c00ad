"""``env:NAME`` in the options of a storage: a secret that stands in the environment and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from dmlscale.data.errors import DataError

# With the word that a header begins with, if there is one: "Bearer env:TOKEN".
_REFERENCE = re.compile(r"(?P<scheme>(?i:Bearer|Basic|Token) )?env:(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


def is_reference(value: Any) -> bool:
    """Whether a value stands for that of an environment variable."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def resolved(options: Mapping[str, Any], key: str = "data.storage_options") -> dict[str, Any]:
    """The options with the values of the variables that they refer to, however deep. Keep it for no longer than a call.

    Args:
        options: nested.
        key: where they stand in the config, for messages.

    Raises:
        DataError: a variable is not set; names it and the key.
    """
    return {name: _resolved(value, f"{key}.{name}") for name, value in options.items()}


def secret_values(options: Mapping[str, Any]) -> list[str]:
    """What the options refer to, as far as it is set: what no message may hold."""
    return [os.environ.get(name, "") for name in _names(options)]


def _resolved(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return resolved(value, key)
    if isinstance(value, list | tuple):
        return [_resolved(inner, f"{key}.{number}") for number, inner in enumerate(value)]
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    secret = os.environ.get(found["name"])
    if not secret:
        raise DataError(
            f"{key} refers to the environment variable {found['name']}, which is not set here: set it on every machine "
            "that the run has workers on, and where it is started"
        )
    return (found["scheme"] or "") + secret


def _names(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [name for inner in value.values() for name in _names(inner)]
    if isinstance(value, list | tuple):
        return [name for inner in value for name in _names(inner)]
    found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return [] if found is None else [found["name"]]
