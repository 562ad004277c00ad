"""Findings as a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dmlscale.launch.doctor.finding import Finding, Line, lines_of, named, passes

_COLORS = {"ok": "green", "warn": "yellow", "fail": "red"}
_WIDEST_NODES = 28
_MOST_GOOD_LINES = 8  # of one check, where every node says something else, like the speed of its link


def show(findings: Sequence[Finding], console: Console) -> None:
    """Prints a line per check, with the nodes that agree on it, and what to do under each that is not good."""
    lines = lines_of(findings)
    num_nodes = len({finding.node for finding in findings if finding.node})
    table = Table(show_edge=False, box=None, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("nodes", max_width=_WIDEST_NODES)
    table.add_column("what")
    good: Counter[str] = Counter()
    for line in lines:
        good[line.check] += line.status == "ok"
        if line.status != "ok" or good[line.check] <= _MOST_GOOD_LINES:
            table.add_row(*_cells(line, num_nodes))
    for check, count in good.items():
        if count > _MOST_GOOD_LINES:
            table.add_row(check, "", "", f"and {count - _MOST_GOOD_LINES} good lines more")
    console.print(table)
    failed, warned = (sum(line.status == status for line in lines) for status in ("fail", "warn"))
    verdict = "passes" if passes(findings) else "does not pass"
    console.print(
        f"\n{verdict}: {failed} failed, {warned} to think about", style=_COLORS["ok" if not failed else "fail"]
    )


def _cells(line: Line, num_nodes: int) -> tuple[str, Text, str, Text]:
    all_of_several = num_nodes > 1 and len(line.nodes) == num_nodes
    nodes = f"all {num_nodes}" if all_of_several else named(line.nodes)
    # Not as markup: a path may have brackets in it.
    what = Text(line.what)
    if line.advice and line.status != "ok":
        what.append(f"\n-> {line.advice}", style="bold" if line.status == "fail" else "dim")
    return line.check, Text(line.status, style=_COLORS[line.status]), nodes, what
