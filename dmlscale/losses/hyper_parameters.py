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
