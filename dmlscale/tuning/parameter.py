"""One entry of a sweep's `space:` -> a key, its range, and when it is drawn."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dmlscale.losses.search_space import Choice, Integer, LogUniform, Range, Uniform

KINDS = ("uniform", "log_uniform", "int", "choice")

# YAML 1.1 wants a point and a sign in a number with an exponent, and reads 1e-4 as text.
_EXPONENT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+")


@dataclass(frozen=True)
class Parameter:
    """A key that is drawn.

    Args:
        key: dotted, as in `key=value` overrides: `losses.margin`.
        range: what is drawn from.
        when: key -> values; the parameter is drawn where each of these keys has one of its values.
        is_default: of a loss's own search space; it gives way to an entry of the user's for the same key.
    """

    key: str
    range: Range
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    is_default: bool = False


def read_parameter(key: str, entry: Any) -> Parameter:
    """An entry of the YAML.

    Args:
        key: dotted.
        entry: `{uniform: [low, high]}`, `{log_uniform: [low, high]}`, `{int: [low, high], log: true}` or
            `{choice: [...]}`, each also with `when: {key: value or list of values}`.

    Raises:
        ValueError: it is none of these; says what to write.
    """
    if not isinstance(entry, Mapping):
        shown = entry if isinstance(entry, list) else [entry]
        raise ValueError(f"got {entry!r}; write {{choice: {shown}}} or one of {', '.join(KINDS[:-1])}: [low, high]")
    kinds = [kind for kind in KINDS if kind in entry]
    known = (*KINDS, "log", "when")
    for name in entry:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown {name!r}{hint} (there are: {', '.join(known)})")
    if len(kinds) != 1:
        raise ValueError(f"needs exactly one of {', '.join(KINDS)}, got {' and '.join(kinds) or 'none'}")
    if "log" in entry and kinds != ["int"]:
        raise ValueError("log belongs to int; log_uniform is the logarithmic range of numbers that are not whole")
    return Parameter(key, _range(kinds[0], entry), _conditions(entry.get("when", {})))


def with_numbers(value: Any) -> Any:
    """A value of YAML where texts as `1e-4` are the numbers that they were meant as, at any depth."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, Mapping):
        return {key: with_numbers(inner) for key, inner in value.items()}
    return [with_numbers(inner) for inner in value] if isinstance(value, list) else value


def countable_values(searched: Range) -> Sequence[Any] | None:
    """All values of a range, or None where there is no end of them."""
    if isinstance(searched, Choice):
        return searched.values
    return range(searched.low, searched.high + 1) if isinstance(searched, Integer) else None


def _range(kind: str, entry: Mapping[str, Any]) -> Range:
    bounds = with_numbers(entry[kind])
    if kind == "choice":
        return Choice(bounds)
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ValueError(f"{kind} needs its two ends, as {kind}: [low, high], got {bounds!r}")
    low, high = bounds
    if kind == "int":
        if not isinstance(entry.get("log", False), bool):
            raise ValueError(f"log must be true or false, got {entry['log']!r}")
        return Integer(_whole(low), _whole(high), entry.get("log", False))
    return Uniform(low, high) if kind == "uniform" else LogUniform(low, high)


def _whole(bound: Any) -> Any:
    """1e3 is a float in YAML, whole all the same."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _conditions(when: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(when, Mapping):
        raise ValueError(f"when must be a mapping, as when: {{losses.name: [triplet]}}, got {when!r}")
    found = {}
    for key, accepted in when.items():
        values = with_numbers(accepted)
        found[str(key)] = tuple(values) if isinstance(values, list) else (values,)
        if not found[str(key)]:
            raise ValueError(f"when: {key} has no value to be compared with")
    return found
