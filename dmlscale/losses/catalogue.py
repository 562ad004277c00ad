"""All registered losses as a table: what `dmlscale losses` prints and docs/losses.md holds."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dmlscale.losses import LOSSES, Loss
from dmlscale.losses.search_space import SearchSpace

HEADINGS = ("loss", "family", "paper", "hyper-parameters = defaults", "sharded over workers")
DIVISORS = ("loss", "sums are divided by")
SPACES = ("loss", "default search space")


@dataclass(frozen=True)
class Entry:
    """What a user wants to know before choosing a loss."""

    name: str
    family: str  # "pairs" or "classes"
    paper: str
    hyper_parameters: dict[str, Any]  # with their defaults
    sharded: str  # what each worker holds a part of
    divided_by: str  # what its sums are divided by
    search_space: SearchSpace  # where a sweep searches the hyper-parameters


def entries() -> list[Entry]:
    """One entry for each loss: pairs first, then classes, by name."""
    found = [_entry(name, LOSSES[name]) for name in LOSSES]
    return sorted(found, key=lambda entry: (entry.family != "pairs", entry.name))


def _entry(name: str, cls: type[Loss]) -> Entry:
    # A dataclass's constructor has its fields as parameters.
    options = {option.name: option.default for option in inspect.signature(cls).parameters.values()}
    return Entry(name, cls.block, cls.paper, options, cls.sharded, cls.divided_by, cls.search_space)


def cells(entry: Entry) -> tuple[str, str, str, str, str]:
    """An entry as text, in the order of `HEADINGS`."""
    options = ", ".join(f"{name}={value!r}" for name, value in entry.hyper_parameters.items())
    return entry.name, entry.family, entry.paper, options or "none", entry.sharded


def space_lines(entry: Entry) -> list[str]:
    """The default search space as text, one hyper-parameter a line, much as in the YAML of a sweep."""
    return [f"{name}: {bounds}" for name, bounds in entry.search_space.items()]


def as_markdown() -> str:
    """The table for docs/losses.md."""
    rows = [
        (f"`{n}`", family, paper, f"`{options}`", part) for n, family, paper, options, part in map(cells, entries())
    ]
    return _table(HEADINGS, rows)


def divisors_as_markdown() -> str:
    """What sums are divided by, for docs/losses.md."""
    return _table(DIVISORS, ((f"`{e.name}`", e.divided_by.replace("|", r"\|")) for e in entries()))


def spaces_as_markdown() -> str:
    """Default search spaces, for docs/losses.md."""
    rows = ((e.name, ", ".join(f"`{line}`" for line in space_lines(e))) for e in entries())
    return _table(SPACES, ((f"`{name}`", space or "none") for name, space in rows))


def renewed(text: str) -> str:
    """A document with its three tables as they are now.

    Raises:
        ValueError: it has not all of them.
    """
    for table in (as_markdown(), divisors_as_markdown(), spaces_as_markdown()):
        head = table.splitlines()[0]
        before, found, after = text.partition(head)
        if not found:
            raise ValueError(f"no table with the line {head!r}")
        rest = after.splitlines(keepends=True)[1:]
        length = next((n for n, line in enumerate(rest) if not line.startswith("|")), len(rest))
        text = before + table + "\n" + "".join(rest[length:])
    return text


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
