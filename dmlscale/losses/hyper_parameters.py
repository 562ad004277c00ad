"""A registered dataclass from keyword arguments, with errors that name the nearest field."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def make(cls: type[T], name: str, values: Mapping[str, Any]) -> T:
    """``cls(**values)``.

    Raises:
        ValueError: a key that is no field of ``cls``, or what the class itself refuses.
    """
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} has no hyper-parameter {key!r}{hint} (it has: {', '.join(fields)})")
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise ValueError(f"{name}: {key} must be a finite number, got {values[key]}")
    return cls(**values)


def require_positive(loss: object, name: str, *fields: str) -> None:
    """Refuses hyper-parameters that are not above zero.

    Raises:
        ValueError: names the loss, the field and its value.
    """
    for field in fields:
        if not getattr(loss, field) > 0:
            raise ValueError(f"{name}: {field} must be positive, got {getattr(loss, field)}")


def require_not_negative(loss: object, name: str, *fields: str) -> None:
    """Refuses hyper-parameters below zero.

    Raises:
        ValueError: names the loss, the field and its value.
    """
    for field in fields:
        if not getattr(loss, field) >= 0:
            raise ValueError(f"{name}: {field} must not be negative, got {getattr(loss, field)}")


def require_choice(loss: object, name: str, field: str, *choices: object) -> None:
    """Refuses a hyper-parameter that is none of the choices.

    Raises:
        ValueError: names the loss, the field, its value and the choices.
    """
    if getattr(loss, field) not in choices:
        raise ValueError(
            f"{name}: {field} must be one of {', '.join(map(repr, choices))}, got {getattr(loss, field)!r}"
        )
