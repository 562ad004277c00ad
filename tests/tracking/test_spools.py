"""Processes that record one run in turn, some of which live on."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.tracking.spools import Spools, forget_sent, holds_spools, num_undelivered, read_all


def _point(value: int) -> dict[str, object]:
    return {"kind": "metrics", "v": value}


def _send(spools: Spools, limit: int = 1000) -> list[int]:
    """Sends one batch; its values."""
    records = spools.pending(limit)
    if records:
        spools.confirm(records[-1])
    return [record.fields["v"] for record in records]


def _send_all(spools: Spools) -> list[int]:
    values = []
    while spools.num_pending:
        values += _send(spools)
    return values


def test_the_newest_sends_first_what_older_ones_left(tmp_path: Path) -> None:
    first = Spools(tmp_path)
    first.own.append([_point(1), _point(2), _point(3)])
    assert _send(first, limit=1) == [1]
    second = Spools(tmp_path)
    second.own.append([_point(4)])
    third = Spools(tmp_path)
    third.own.append([_point(5)])
    assert num_undelivered(tmp_path) == third.num_pending == 4
    assert [spools.is_current() for spools in (first, second, third)] == [False, False, True]
    assert _send_all(third) == [2, 3, 4, 5]
    assert num_undelivered(tmp_path) == 0
    assert [fields["v"] for fields in read_all(tmp_path)] == [1, 2, 3, 4, 5]
    forget_sent(tmp_path)
    assert num_undelivered(tmp_path) == 5


def test_what_an_orphan_writes_later_never_counts(tmp_path: Path) -> None:
    orphan = Spools(tmp_path)
    orphan.own.append([_point(1)])
    with Spools(tmp_path) as second:
        orphan.own.append([_point(-1)])
        second.own.append([_point(2)])
        assert _send(second, limit=1) == [1]
    orphan.own.append([{"kind": "status", "status": "FAILED"}])
    with Spools(tmp_path) as third:
        assert _send_all(third) == [2]
    assert [fields["v"] for fields in read_all(tmp_path)] == [1, 2]


def test_how_a_run_ended_before_it_was_continued_is_over(tmp_path: Path) -> None:
    with Spools(tmp_path, starts=True) as first:
        first.own.append([{"kind": "status"}])
    with Spools(tmp_path, starts=True), Spools(tmp_path) as worker:
        worker.own.append([{"kind": "status"}])
        kinds = []
        while records := worker.pending(9):
            kinds += [record.fields["kind"] for record in records]
            worker.confirm(records[-1])
        assert kinds == ["status before", "status"]


def test_all_but_metrics_is_the_same_records_without_those(tmp_path: Path) -> None:
    tags = {"kind": "tags", "values": {"text": '{"n":1,"kind":"metrics",'}}
    with Spools(tmp_path) as spools:
        spools.own.append([_point(1), tags, _point(2), {"kind": "status"}])
    assert list(read_all(tmp_path, but_metrics=True)) == [tags, {"kind": "status"}]
    assert len(list(read_all(tmp_path))) == 4


def test_processes_that_begin_at_the_same_moment_have_spools_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda _: Spools(tmp_path), range(16)))
    assert len({spools.own.path for spools in begun}) == 16
    assert sum(spools.is_current() for spools in begun) == 1


def test_a_kill_before_the_first_line_harms_nobody(tmp_path: Path) -> None:
    with Spools(tmp_path) as first:
        first.own.append([_point(1)])
    for number, torn in ((2, b""), (3, b'{"n":0,"kind":"beg')):
        (first.folder / f"{number:06d}.jsonl").write_bytes(torn)
    with Spools(tmp_path) as fourth:
        assert _send_all(fourth) == [1]


def test_a_run_of_the_old_layout_is_sent_first(tmp_path: Path) -> None:
    lines = [{"n": n, **_point(n)} for n in (1, 2, 3)] + [
        {"n": 4, "kind": "artifact", "file": "tracking.jsonl.files/a"}
    ]
    whole = [json.dumps(line) + "\n" for line in lines]
    (tmp_path / "tracking.jsonl").write_text("".join(whole))
    (tmp_path / "tracking.jsonl.sent").write_text(json.dumps({"n": 1, "position": len(whole[0])}))
    (tmp_path / "tracking.jsonl.files").mkdir()
    (tmp_path / "tracking.jsonl.files" / "a").touch()
    assert holds_spools(tmp_path)
    with Spools(tmp_path) as spools:
        spools.own.append([_point(4)])
        old = spools.pending(9)
        assert [record.number for record in old] == [2, 3, 4]
        assert (spools.folder / old[-1].fields["file"]).exists()
        spools.confirm(old[-1])
        assert _send_all(spools) == [4]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=8))
def test_every_record_is_sent_once_in_order_however_often_processes_change(
    tmp_path_factory: pytest.TempPathFactory, lives: list[tuple[int, int]]
) -> None:
    """Each life writes some records and sends up to a number of them."""
    folder = tmp_path_factory.mktemp("run")
    written, sent = 0, []
    for num_written, num_sent in lives:
        with Spools(folder) as spools:
            spools.own.append(_point(written + i) for i in range(num_written))
            written += num_written
            while num_sent > 0 and spools.num_pending:
                values = _send(spools, limit=num_sent)
                sent += values
                num_sent -= len(values)
    with Spools(folder) as last:
        sent += _send_all(last)
    assert sent == list(range(written))
