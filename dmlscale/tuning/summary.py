"""The trials of a sweep as a table: for spreadsheets, for the tracker's description, for a terminal."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dmlscale.tuning.outcomes import Mode, Outcome, Scalar, Status, ranked
from dmlscale.tuning.searched import name_of, searched_keys

_ORDER: tuple[Status, ...] = ("running", "pending", "finished", "stopped", "failed")
_COUNTS_LETTERS = 120  # of the line that counts what is left out
_MARKS = re.compile(r"([\\`*_{}\[\]()#+!|~$])")


@dataclass(frozen=True)
class SummaryTable:
    """One row for each trial.

    Args:
        columns: headings: rank, trial, status, reason, the searched keys, steps, the metric, seconds, run_id.
        rows: cells by column; None where a trial has no rank, no such key or no such metric.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Scalar, ...], ...]


def summary_table(outcomes: Sequence[Outcome], metric: str, mode: Mode) -> SummaryTable:
    """All trials, best first; then those without a rank, failed ones last.

    Args:
        outcomes: trials.
        metric: by which they are ranked.
        mode: whether more or less of it is better.
    """
    keys = [key.key for key in searched_keys(outcomes)]
    rows = []
    for rank, outcome in in_order(outcomes, metric, mode):
        value = outcome.value(metric)
        settings = [outcome.drawn.get(key) for key in keys]
        result = value if math.isfinite(value) else None
        first = [rank, outcome.trial, outcome.status, outcome.reason]
        rows.append((*first, *settings, outcome.steps, result, outcome.seconds, outcome.run_id))
    return SummaryTable(("rank", "trial", "status", "reason", *keys, "steps", metric, "seconds", "run_id"), tuple(rows))


def in_order(outcomes: Sequence[Outcome], metric: str, mode: Mode) -> list[tuple[int | None, Outcome]]:
    """(rank from 1, trial), best first; those that do not count have no rank and come last, failed ones at the end."""
    good = ranked(outcomes, metric, mode)
    rest = [outcome for outcome in outcomes if not any(outcome is other for other in good)]
    rest.sort(key=lambda outcome: outcome.status == "failed")
    return [*((rank, outcome) for rank, outcome in enumerate(good, start=1)), *((None, outcome) for outcome in rest)]


def as_csv(table: SummaryTable) -> str:
    """With a heading; cells without a value are empty, numbers have all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return text.getvalue()


def as_markdown(table: SummaryTable, *, limit: int = 20, most_letters: int = 8000) -> str:
    """A table for a description: the reason beside the status, numbers in short, without run ids.

    Args:
        table: of all trials.
        limit: rows at most; a line below counts the others.
        most_letters: that the text may have; there are fewer rows where they would be more. MLflow takes 8,000.

    Returns:
        Markdown. Cells are escaped: nothing in them is markup or HTML.
    """
    status, reason, run_id = (table.columns.index(name) for name in ("status", "reason", "run_id"))
    columns = [column for column in range(len(table.columns)) if column not in (reason, run_id)]
    lines = [_line([table.columns[column] for column in columns]), "|" + " --- |" * len(columns)]
    room = most_letters - sum(len(line) + 1 for line in lines) - _COUNTS_LETTERS
    for row in table.rows[:limit]:
        cells = [_short(row[column]) for column in columns]
        if row[reason]:
            cells[columns.index(status)] = f"{row[status]}: {_cut(str(row[reason]))}"
        line = _line(cells)
        room -= len(line) + 1
        if room < 0:
            break
        lines.append(line)
    left = table.rows[len(lines) - 2 :]
    if left:
        lines += ["", f"and {len(left)} more: {counts(str(row[status]) for row in left)}"]
    return "\n".join(lines) + "\n"


def counts(statuses: Iterable[str]) -> str:
    """For example ``3 finished, 1 failed``."""
    numbers = Counter(statuses)
    return ", ".join(f"{numbers[status]} {status}" for status in _ORDER if numbers[status])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(_escaped, cells)) + " |"


def _short(value: Scalar) -> str:
    return "" if value is None else name_of(value)


def _cut(text: str, most: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def _escaped(text: str) -> str:
    """HTML by entities, what markdown reads as markup by backslashes; one line."""
    text = " ".join(text.split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", text)
