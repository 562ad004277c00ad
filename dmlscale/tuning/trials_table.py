"""The table of trials that a terminal shows while a sweep runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from dmlscale.tuning.outcomes import Mode, Outcome, Status
from dmlscale.tuning.searched import name_of, searched_keys
from dmlscale.tuning.summary import counts, in_order

_STYLES: dict[Status, str] = {
    "finished": "green",
    "stopped": "yellow",
    "failed": "red",
    "running": "bold cyan",
    "pending": "dim",
}
_LETTERS = 16  # of a trial's name, whose end tells it from others
_WIDE = 70  # columns of a terminal from which the settings have room
_ROOMY = 100  # from which the best of each curve has room, beside its last value


@dataclass(frozen=True)
class TrialsTable:
    """Draws itself to the width of the terminal: narrow ones lose the settings and the time, never the results.

    Args:
        outcomes: trials.
        metric: by which they are ranked.
        mode: whether more or less of it is better.
        limit: rows at most; running trials are always among them, so far as they fit.
        steps: that a trial trains if it is not stopped; None where that is not known.
        elapsed: seconds since the sweep began; None to leave it out.
    """

    outcomes: Sequence[Outcome]
    metric: str
    mode: Mode
    limit: int = 20
    steps: int | None = None
    elapsed: float | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, a line for what it leaves out, and one for the whole sweep."""
        ordered = in_order(self.outcomes, self.metric, self.mode)
        shown = self._shown(ordered)
        if shown:
            yield self._table(shown, options.max_width)
        left = [outcome for row, (_, outcome) in enumerate(ordered) if row not in shown]
        if left:
            yield Text(f"and {len(left)} more: {counts(outcome.status for outcome in left)}", style="dim")
        yield Text(self._total(ordered))

    def _shown(self, ordered: Sequence[tuple[int | None, Outcome]]) -> dict[int, tuple[int | None, Outcome]]:
        """Row in the whole order -> rank and trial, of those that have room."""
        first = [row for row, (_, outcome) in enumerate(ordered) if outcome.status == "running"]
        rows = [*first, *(row for row in range(len(ordered)) if row not in first)][: self.limit]
        return {row: ordered[row] for row in sorted(rows)}

    def _table(self, shown: dict[int, tuple[int | None, Outcome]], width: int) -> Table:
        wide, roomy = width >= _WIDE, width >= _ROOMY
        table = Table(box=None, padding=(0, 1), expand=wide)
        table.add_column("#", justify="right", no_wrap=True)
        table.add_column("trial", no_wrap=True, overflow="ellipsis", max_width=_LETTERS)
        table.add_column("status", no_wrap=True)
        table.add_column("step", justify="right", no_wrap=True)
        table.add_column(self.metric.rpartition("/")[2], justify="right", no_wrap=True, overflow="ellipsis")
        if roomy:
            table.add_column("best", justify="right", no_wrap=True)
        if wide:
            table.add_column("time", justify="right", no_wrap=True)
            table.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)
        varied = {key.key for key in searched_keys(self.outcomes) if key.varies}
        for rank, outcome in shown.values():
            cells = [
                "" if rank is None else str(rank),
                outcome.trial
                if len(outcome.trial) <= _LETTERS
                else f"\N{HORIZONTAL ELLIPSIS}{outcome.trial[1 - _LETTERS :]}",
                outcome.status,
                f"{outcome.steps}/{self.steps}" if self.steps else str(outcome.steps),
                _result(outcome.value(self.metric)),
            ]
            if roomy:
                cells.append(_result(outcome.best_value(self.metric, self.mode)))
            if wide:
                cells += [clock(outcome.seconds), _settings(outcome, varied)]
            style = "bold" if rank == 1 else ""
            texts = [Text(" ".join(cell.split()), style=style) for cell in cells]
            texts[2].stylize(_STYLES[outcome.status])
            table.add_row(*texts)
        return table

    def _total(self, ordered: Sequence[tuple[int | None, Outcome]]) -> str:
        parts = [f"{len(ordered)} trials: {counts(o.status for _, o in ordered)}" if ordered else "no trials yet"]
        if ordered and ordered[0][0] == 1:
            parts.append(f"best so far {ordered[0][1].value(self.metric):.4f} ({ordered[0][1].trial})")
        if self.elapsed is not None:
            parts.append(clock(self.elapsed))
        return "   ".join(parts)


def _result(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else ""


def clock(seconds: float) -> str:
    """For example 0:07, 12:30, 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _settings(outcome: Outcome, varied: set[str]) -> str:
    """Reason of a failure, as that is what one needs to know; otherwise the settings that differ between trials."""
    if outcome.status == "failed" and outcome.reason:
        return outcome.reason
    parts = []
    for key, value in outcome.drawn.items():
        if key in varied:
            last = key.rpartition(".")[2]
            parts.append(
                name_of(value)
                if last == "name"
                else f"{last}={f'{value:.2g}' if isinstance(value, float) else name_of(value)}"
            )
    return " ".join(parts)
