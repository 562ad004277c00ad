"""What rank 0 says reaches the terminal, whatever was torn before or in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmlscale.launch.display import ProgressTail
from dmlscale.launch.recovery.attempt import Attempt
from dmlscale.launch.run.progress import Progress


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    folder = tmp_path / "attempts"
    folder.mkdir()
    return Attempt(folder, 1)


def test_a_line_in_which_workers_were_killed_costs_no_other(tmp_path: Path, attempt: Attempt) -> None:
    file = tmp_path / "progress.jsonl"
    file.write_text('{"message": "whole"}\n{"step": 5, "metr')
    progress = Progress(file, attempt, speaks=True)
    progress.message("first")
    progress.fault("second")
    whole, torn, first, second = file.read_text().splitlines()
    assert json.loads(whole) == {"message": "whole"}
    assert torn == '{"step": 5, "metr'
    assert json.loads(first) == {"message": "first", "attempt": 1}
    assert json.loads(second) == {"fault": "second", "attempt": 1}


def test_the_terminal_goes_on_after_a_torn_line(
    tmp_path: Path, attempt: Attempt, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "progress.jsonl"
    with ProgressTail(file):
        Progress(file, attempt, speaks=True).message("before")
        with file.open("a") as torn:
            torn.write('{"step": 5, "metr')
        Progress(file, attempt, speaks=True).message("after")
    assert capsys.readouterr().out == "before\nafter\n"


def test_only_the_rank_that_speaks_and_the_current_start_say_anything(tmp_path: Path, attempt: Attempt) -> None:
    file = tmp_path / "progress.jsonl"
    Progress(file, attempt, speaks=False).message("of another rank")
    (attempt.folder / "000002").touch()
    Progress(file, attempt, speaks=True).message("of an earlier start")
    assert not file.exists()
