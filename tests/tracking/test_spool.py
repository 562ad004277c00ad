import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmlscale.tracking.spool import Spool


def _values(spool: Spool, limit: int = 100) -> list[int]:
    return [record.fields["v"] for record in spool.pending(limit)]


def test_records_are_numbered_and_come_back_in_order(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "deep" / "spool.jsonl")
    spool.append([{"v": 1}, {"v": 2}])
    spool.append([{"v": 3}])
    assert [(record.number, record.fields) for record in spool.pending(2)] == [(1, {"v": 1}), (2, {"v": 2})]
    assert spool.num_pending == spool.last_number == 3


def test_confirmed_records_do_not_come_again_also_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.jsonl")
    spool.append({"v": i} for i in range(5))
    spool.confirm(spool.pending(2)[-1])
    assert _values(spool) == [2, 3, 4]
    again = Spool(tmp_path / "spool.jsonl")
    assert _values(again) == [2, 3, 4]
    again.append([{"v": 5}])
    assert again.pending(9)[-1].number == 6
    again.confirm(again.pending(9)[-1])
    assert again.num_pending == 0
    assert _values(Spool(tmp_path / "spool.jsonl")) == []


def test_torn_last_line_is_cut_off_and_its_number_used_again(tmp_path: Path) -> None:
    path = tmp_path / "spool.jsonl"
    Spool(path).append([{"v": 1}, {"v": 2}])
    path.write_bytes(path.read_bytes()[:-4])
    spool = Spool(path)
    assert _values(spool) == [1]
    spool.append([{"v": 7}])
    assert _values(spool) == [1, 7]
    assert spool.last_number == 2


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.jsonl")
    spool.append([{"v": 1}])
    with spool.path.open("ab") as file:
        file.write(b'{"n":2,"v"')
    assert _values(spool) == [1]


@pytest.mark.parametrize("text", ["", "{", '{"n": 99, "position": 1}', '{"n": 1, "position": 9999}', "[]"])
def test_unusable_note_of_what_was_sent_means_sending_again(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spool.jsonl"
    Spool(path).append([{"v": 1}, {"v": 2}])
    path.with_name("spool.jsonl.sent").write_text(text)
    assert _values(Spool(path)) == [1, 2]


def test_not_a_number_survives(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool.jsonl")
    spool.append([{"v": float("nan")}, {"v": float("-inf")}])
    assert json.dumps(_values(spool)) == "[NaN, -Infinity]"


def test_everything_written_before_a_kill_is_there(tmp_path: Path) -> None:
    path = tmp_path / "spool.jsonl"
    script = f"""
from pathlib import Path
from dmlscale.tracking.spool import Spool
spool, i = Spool(Path({str(path)!r})), 0
while True:
    spool.append([{{"v": i}}])
    i += 1
    if i == 500:
        print(flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path.cwd())
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    values = _values(Spool(path), limit=10**6)
    assert len(values) >= 500
    assert values == list(range(len(values)))
