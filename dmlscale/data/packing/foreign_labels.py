"""The class of a sample in a shard that others have made."""

from __future__ import annotations

import json
from collections.abc import Mapping


def read_label(members: Mapping[str, bytes | None], label: str) -> str:
    """The class label of a sample, as text.

    Args:
        members: contents of its members by extension.
        label: "cls" (any extension whose file is one line of text), or "json:species" (a text or whole number in a
            file of JSON; dots lead into nested objects).

    Raises:
        ValueError: it has none, or one that is neither text nor a whole number; says what there is.
    """
    extension, colon, path = label.partition(":")
    data = members.get(extension.lower())
    if data is None:
        raise ValueError(f"has no label: no member {extension!r} (it has: {', '.join(members)})")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"its label {extension!r} is not UTF-8") from None
    return _json_value(text, path, label) if colon else _line(text, extension)


def _line(text: str, extension: str) -> str:
    line = text.strip()
    if not line:
        raise ValueError(f"its label {extension!r} is empty")
    if len(line.splitlines()) > 1:
        raise ValueError(f"its label {extension!r} is not one line: {line[:40]!r}")
    return line


def _json_value(text: str, path: str, label: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its label {label!r} cannot be read ({error})") from None
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            there = ", ".join(value) if isinstance(value, dict) else f"no object but {_short(value)}"
            raise ValueError(f"has no label {label!r}: no key {name!r} (there is: {there})")
        value = value[name]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value.strip():
        return _line(value, label)
    raise ValueError(f"its label {label!r} is {_short(value)}, must be a text or a whole number")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
