from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import evaluation
from benchmarks.evaluation import SIDES, SMALL, Result, Size, embedded, measure


@pytest.fixture(scope="module")
def result() -> Result:
    return measure(SMALL[0], rounds=1)


@pytest.mark.parametrize("size", SMALL)
def test_both_sides_search_the_same_and_find_the_same(size: Size) -> None:
    queries, gallery = embedded(size)
    items = queries if gallery is None else gallery
    assert len(items.ids) == size.items
    assert len(queries.ids) == size.queries or gallery is None
    recalls = [make(queries, gallery, size)() for make in SIDES.values()]
    assert recalls[0] == recalls[1]
    assert 0.3 < recalls[0] < 1


def test_a_measured_row_tells_time_and_memory(result: Result) -> None:
    assert set(result.seconds) == set(result.gibibytes) == {"faiss", "ours"}
    assert 0.1 < result.gibibytes["ours"] < 3
    assert f"| {result.ratio:.2f}x |" in result.row()


def test_what_does_not_hold_is_told() -> None:
    size = Size(1_000)
    bad = Result(size, {"faiss": 1.0, "ours": 1.3}, {"faiss": 1.0, "ours": 3.5}, {"faiss": 0.5, "ours": 0.6})
    assert bad.failures() == [
        "1,000 x 128 against themselves: 1.30x the bare search, bound 1.2x",
        "1,000 x 128 against themselves: 3.50 GiB, bound 3 GiB",
        "1,000 x 128 against themselves: Recall@1 0.6 here, 0.5 there",
    ]
    good = Result(size, {"faiss": 1.0, "ours": 1.1}, {"faiss": 9.0, "ours": 2.9}, {"faiss": 0.5, "ours": 0.5})
    assert not good.failures()


def test_the_command_writes_a_table_and_fails_on_a_missed_bound(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "measure", lambda size, rounds: Result(size, *list(vars(result).values())[1:]))
    monkeypatch.setattr(sys, "argv", ["evaluation", "--small", "--markdown", str(tmp_path / "table.md")])
    for most, status in ((1e9, 0), (0.0, 1)):
        monkeypatch.setattr(evaluation, "MOST_RATIO", most)
        assert evaluation.main() == status
        printed = capsys.readouterr().out
        assert printed.count("BOUND") == 2 * status
        assert printed.startswith((tmp_path / "table.md").read_text())
        assert printed.count("\n| ") == 1 + len(SMALL)
