import csv
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from dmlscale.tuning.outcomes import Outcome
from dmlscale.tuning.summary import as_csv, as_markdown, summary_table
from dmlscale.tuning.trials_table import TrialsTable, clock
from tests.tuning.planted import METRIC, planted_trials


def _failed(trial: str, reason: str) -> Outcome:
    return Outcome(trial=trial, status="failed", reason=reason, drawn={"losses.name": "triplet"})


class _Cells(HTMLParser):
    """Text of each cell of a rendered table, and all tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._open = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._open = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.rows[-1][-1] += data


def _rendered(markdown: str) -> _Cells:
    return _Cells(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))


def test_rows_are_best_first_and_failures_last() -> None:
    trials = planted_trials(5)
    trials.insert(0, _failed("broken", "out of memory"))
    trials.insert(1, Outcome(trial="waits", status="pending", drawn={}))
    table = summary_table(trials, METRIC, "max")
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, None, None]
    assert [row["trial"] for row in rows[5:]] == ["waits", "broken"]
    values = [row[METRIC] for row in rows[:5]]
    assert values == sorted(values, reverse=True, key=lambda value: float(str(value)))
    assert summary_table(trials, METRIC, "min").rows[0][1] == rows[4]["trial"]
    assert rows[6][METRIC] is None
    assert {"losses.margin", "losses.temperature", "steps", "seconds", "reason", "run_id"} <= set(table.columns)


def test_csv_keeps_all_digits_and_odd_letters() -> None:
    trials = [*planted_trials(3), _failed("broken", 'a "quoted"\nreason, with | marks')]
    table = summary_table(trials, METRIC, "max")
    header, *rows = csv.reader(io.StringIO(as_csv(table)))
    assert tuple(header) == table.columns
    assert float(rows[0][header.index(METRIC)]) == max(outcome.value(METRIC) for outcome in trials[:3])
    assert rows[-1][header.index("reason")] == 'a "quoted"\nreason, with | marks'
    assert rows[-1][header.index("losses.margin")] == ""


@given(st.text(min_size=1, max_size=30) | st.sampled_from(["a\\|b", "<script>x</script>", "[a](b)", "**b**", "&lt;"]))
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    table = summary_table([replace(_failed("broken", text), drawn={f"k.{text}": text})], METRIC, "max")
    page = _rendered(as_markdown(table))
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    shown = text.replace("\0", "\N{REPLACEMENT CHARACTER}")  # which CommonMark writes for it
    assert [cell.split() for cell in page.rows[1]][2:4] == [["failed:", *shown.split()], shown.split()]
    assert len(page.rows[0]) == len(page.rows[1]) == 7


def test_markdown_counts_what_it_leaves_out_and_fits() -> None:
    table = summary_table([*planted_trials(60), _failed("broken", "x" * 500)], METRIC, "max")
    text = as_markdown(table, limit=10)
    assert len(_rendered(text).rows) == 11
    assert re.search(r"and 51 more: \d+ finished, \d+ stopped, 1 failed", text)
    short = as_markdown(table, limit=61, most_letters=2000)
    assert 1500 < len(short) <= 2000
    shown = len(_rendered(short).rows) - 1
    assert f"and {61 - shown} more" in short
    assert "more" not in as_markdown(table, limit=61, most_letters=100_000)


def _printed(table: TrialsTable, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [120, 80, 50])
def test_a_terminal_of_any_width_has_the_results(width: int) -> None:
    trials = planted_trials(4)
    trials[1] = replace(trials[1], status="running")
    lines = _printed(TrialsTable(trials, METRIC, "max", steps=400, elapsed=3725), width)
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    for outcome in trials:
        line = next(line for line in lines if outcome.trial in line)
        assert f"{outcome.steps}/400" in line
        assert f"{outcome.value(METRIC):.4f}" in line
        assert outcome.status in line
    assert ("settings" in text) == (width >= 80)
    assert "1:02:05" in text
    assert "best so far" in " ".join(text.split())


def test_running_trials_are_shown_however_bad() -> None:
    trials = planted_trials(30)
    worst = min(range(30), key=lambda number: trials[number].value(METRIC))
    trials[worst] = replace(trials[worst], status="running")
    text = "\n".join(_printed(TrialsTable(trials, METRIC, "max", limit=5), 100))
    assert trials[worst].trial in text
    assert "and 25 more: " in text


def test_odd_trials_in_a_terminal() -> None:
    trials = [
        _failed("[red]markup[/red]", "[bold]boom[/bold]\nsecond line"),
        replace(planted_trials(1)[0], curve=((1, {METRIC: math.nan}),)),
    ]
    lines = _printed(TrialsTable(trials, METRIC, "max"), 100)
    assert any("[bold]boom[/bold] second line" in line for line in lines)
    assert "best so far" not in "\n".join(lines)
    assert _printed(TrialsTable([], METRIC, "max"), 80) == ["no trials yet"]
    assert [clock(seconds) for seconds in (6.6, 750, 3723)] == ["0:07", "12:30", "1:02:03"]
