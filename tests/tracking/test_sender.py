import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dmlscale.tracking import sender as sender_module
from dmlscale.tracking.sender import ReceiverLostAllError, Sender
from dmlscale.tracking.spool import Record
from dmlscale.tracking.spools import Spools


@pytest.fixture
def spools(tmp_path: Path) -> Iterator[Spools]:
    with Spools(tmp_path) as spools:
        yield spools


class _Receiver:
    """Takes records, after failing as often as it is told to."""

    def __init__(self, num_failures: int = 0) -> None:
        self.num_failures = num_failures
        self.is_away = False
        self.has_failed = threading.Event()
        self.values: list[int] = []
        self.batches: list[int] = []

    def deliver(self, records: Sequence[Record]) -> None:
        if self.num_failures or self.is_away:
            self.num_failures = max(0, self.num_failures - 1)
            self.has_failed.set()
            raise ConnectionError("server is down\nmore about it")
        self.values += [record.fields["v"] for record in records]
        self.batches.append(len(records))


def test_all_records_arrive_once_in_order_and_in_batches(spools: Spools) -> None:
    receiver = _Receiver()
    spools.own.append({"v": i} for i in range(2500))
    sender = Sender(spools, receiver.deliver)
    assert sender.drain(60) == 0
    assert sender.stop(60)
    assert receiver.values == list(range(2500))
    assert max(receiver.batches) == sender_module.RECORDS_PER_BATCH


def test_failures_are_repeated_and_told_once(spools: Spools, caplog: pytest.LogCaptureFixture) -> None:
    receiver = _Receiver(num_failures=2)
    spools.own.append({"v": i} for i in range(10))
    sender = Sender(spools, receiver.deliver, interval_s=0.01)
    assert sender.drain(60) == 0
    assert sender.stop(60)
    assert receiver.values == list(range(10))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert "(ConnectionError: server is down): the training goes on" in warnings[0]
    assert "reachable again" in warnings[1]


def test_drain_ends_a_long_pause(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_FIRST_PAUSE_S", 600.0)
    monkeypatch.setattr(sender_module, "_HOPELESS_S", 60.0)
    receiver = _Receiver(num_failures=1)
    spools.own.append([{"v": 1}])
    sender = Sender(spools, receiver.deliver)
    assert receiver.has_failed.wait(60)
    assert sender.drain(60) == 0
    assert sender.stop(60)


def test_a_receiver_that_hangs_holds_nobody_up(spools: Spools) -> None:
    hangs, release = threading.Event(), threading.Event()
    spools.own.append([{"v": 1}])

    def hang(records: Sequence[Record]) -> None:
        hangs.set()
        release.wait(120)

    sender = Sender(spools, hang)
    assert hangs.wait(60)
    start = time.monotonic()
    spools.own.append([{"v": 2}])
    assert sender.drain(0.2) == 2
    assert not sender.stop(0.1)
    assert time.monotonic() - start < 20  # it hangs for longer
    release.set()
    assert sender.stop(60)


def test_it_ends_when_another_process_has_taken_over(spools: Spools) -> None:
    receiver = _Receiver()
    spools.own.append([{"v": 1}])
    sender = Sender(spools, receiver.deliver, interval_s=0.01)
    assert sender.drain(60) == 0
    with Spools(spools.folder.parent) as later:
        spools.own.append([{"v": 2}])
        assert sender.drain(60) == 1
        assert sender.is_superseded
        assert later.num_pending == 0  # it was written after the other had begun
    assert receiver.values == [1]


def test_a_restart_does_not_say_again_that_the_store_is_away(tmp_path: Path) -> None:
    told: list[str] = []
    receiver = _Receiver()
    receiver.is_away = True

    def say(*, fault: str = "", message: str = "") -> None:
        told.append(fault or message)

    for value in range(3):
        with Spools(tmp_path) as spools:
            spools.own.append([{"kind": "metrics", "v": value}])
            sender = Sender(spools, receiver.deliver, interval_s=0.01, say=say)
            assert receiver.has_failed.wait(60)
            if value == 2:
                receiver.is_away = False
                assert sender.drain(60) == 0
            assert sender.stop(60)
            receiver.has_failed.clear()
    assert receiver.values == [0, 1, 2]
    assert ["cannot be reached" in line for line in told] == [True, False]
    assert "reachable again" in told[1]


def test_a_receiver_that_lost_everything_gets_it_again(spools: Spools) -> None:
    receiver, losses = _Receiver(), [1]

    def deliver(records: Sequence[Record]) -> None:
        if records[0].fields["v"] >= 10 and losses:
            losses.pop()
            receiver.values.clear()
            raise ReceiverLostAllError("the run is gone")
        receiver.deliver(records)

    spools.own.append({"kind": "metrics", "v": i} for i in range(10))
    sender = Sender(spools, deliver, interval_s=0.01)
    assert sender.drain(60) == 0
    spools.own.append({"kind": "metrics", "v": i} for i in range(10, 20))
    assert sender.drain(60) == 0
    assert sender.stop(60)
    assert receiver.values == list(range(20))


def test_whoever_wants_to_know_is_told(spools: Spools) -> None:
    told: list[tuple[str, str]] = []

    def say(*, fault: str = "", message: str = "") -> None:
        told.append((fault, message))

    spools.own.append([{"v": 1}])
    sender = Sender(spools, _Receiver(num_failures=2).deliver, interval_s=0.01, say=say)
    assert sender.drain(60) == 0
    assert sender.stop(60)
    assert [bool(fault) for fault, _ in told] == [True, False]
    assert told[1][1] == "tracking: the store is reachable again, and gets what has waited"
