import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmlscale.tracking import spool as spool_module
from dmlscale.tracking.spool import OwnSpool, Spool
from tests.tracking.small_disk import SmallDisk


def _values(spool: Spool, limit: int = 100) -> list[int]:
    return [record.fields["v"] for record in spool.pending(limit)]


def _spool(path: Path, *values: float) -> OwnSpool:
    spool = OwnSpool(path)
    spool.append({"v": value} for value in values)
    return spool


def test_records_are_numbered_and_come_back_in_order(tmp_path: Path) -> None:
    spool = _spool(tmp_path / "spool.jsonl", 1, 2)
    spool.append([{"v": 3}])
    assert [(record.number, record.fields) for record in spool.pending(2)] == [(1, {"v": 1}), (2, {"v": 2})]
    assert spool.num_pending == 3


def test_confirmed_records_do_not_come_again_also_to_a_later_process(tmp_path: Path) -> None:
    spool = _spool(tmp_path / "spool.jsonl", *range(5))
    spool.confirm(spool.pending(2)[-1])
    assert _values(spool) == [2, 3, 4]
    later = Spool(spool.path)
    assert _values(later) == [2, 3, 4]
    assert later.num_pending == 3
    later.confirm(later.pending(9)[-1])
    assert later.num_pending == 0
    assert _values(Spool(spool.path)) == []
    assert _values(Spool(spool.path, again=True)) == [0, 1, 2, 3, 4]


def test_two_processes_cannot_have_one_spool(tmp_path: Path) -> None:
    spool = _spool(tmp_path / "spool.jsonl", 1)
    with pytest.raises(FileExistsError):
        OwnSpool(spool.path)
    assert _values(spool) == [1]


def test_what_is_written_behind_the_end_is_not_read(tmp_path: Path) -> None:
    spool = _spool(tmp_path / "spool.jsonl", 1, 2)
    later = Spool(spool.path)
    spool.append([{"v": 3}])
    assert _values(later) == [1, 2]
    assert later.num_pending == 2
    later.confirm(later.pending(9)[-1])
    assert _values(later) == []


@pytest.mark.parametrize("torn", [b'{"n":3,"v"', b'{"n":3,"v":', b"\0\0\0\0"])
def test_a_torn_last_line_is_not_read(tmp_path: Path, torn: bytes) -> None:
    spool = _spool(tmp_path / "spool.jsonl", 1, 2)
    with spool.path.open("ab") as file:
        file.write(torn)
    assert _values(Spool(spool.path)) == [1, 2]
    assert Spool(spool.path).num_pending == 2


def test_a_damaged_line_does_not_hold_up_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = _spool(tmp_path / "spool.jsonl", 1, 2, 3)
    spool.path.write_bytes(spool.path.read_bytes().replace(b'"n":2', b'"n":\xff'))
    assert _values(Spool(spool.path)) == [1, 3]
    assert "cannot be read and is left out" in caplog.text


@pytest.mark.parametrize("last", [b'{"n":\xff,"v":3}\n', b"[]\n", b"\0\0\0\n"])
def test_a_damaged_last_line_is_not_waited_for(tmp_path: Path, last: bytes) -> None:
    spool = _spool(tmp_path / "spool.jsonl", 1, 2)
    with spool.path.open("ab") as file:
        file.write(last)
    later = Spool(spool.path)
    assert later.num_pending == 2
    later.confirm(later.pending(9)[-1])
    assert later.num_pending == 0
    assert Spool(spool.path).num_pending == 0


@pytest.mark.parametrize("text", ["", "{", '{"n": 1, "position": 9999}', "[]"])
def test_unusable_note_of_what_was_sent_means_sending_again(tmp_path: Path, text: str) -> None:
    spool = _spool(tmp_path / "spool.jsonl", 1, 2)
    spool.path.with_name("spool.jsonl.sent").write_text(text)
    assert _values(Spool(spool.path)) == [1, 2]


def test_not_a_number_survives(tmp_path: Path) -> None:
    spool = _spool(tmp_path / "spool.jsonl", float("nan"), float("-inf"))
    assert json.dumps(_values(spool)) == "[NaN, -Infinity]"


def test_everything_written_before_a_kill_is_there(tmp_path: Path) -> None:
    path = tmp_path / "spool.jsonl"
    script = f"""
from pathlib import Path
from dmlscale.tracking.spool import OwnSpool
spool, i = OwnSpool(Path({str(path)!r})), 0
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with SmallDisk(tmp_path / "disk") as disk:
        yield disk


def test_records_wait_in_memory_while_the_disk_is_full(small_disk: SmallDisk) -> None:
    spool = _spool(small_disk.folder / "spool.jsonl", 1, 2)
    with small_disk.full():
        spool.append({"v": value, "long": "x" * 5000} for value in (3, 4))
        spool.append([{"v": 5}])
        assert spool.num_waiting == 3
        assert _values(spool) == [1, 2, 3, 4, 5]
        spool.confirm(spool.pending(4)[-1])  # also from memory, where even that cannot be noted
        assert _values(spool) == [5]
        assert _values(Spool(spool.path, again=True)) == [1, 2]
    spool.append([{"v": 6}])
    assert spool.num_waiting == 0
    assert _values(spool) == [5, 6]
    spool.close()
    assert _values(Spool(spool.path, again=True)) == [1, 2, 3, 4, 5, 6]


def test_memory_is_bounded(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "MOST_WAITING", 10)
    spool = _spool(small_disk.folder / "spool.jsonl", 0)
    with small_disk.full():
        spool.append({"v": value, "long": "x" * 5000} for value in range(1, 31))
        assert (spool.num_waiting, spool.num_lost) == (10, 20)
    spool.append([{"v": 99}])
    spool.close()
    assert _values(Spool(spool.path)) == [*range(11), 99]
