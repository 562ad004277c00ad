import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dmlscale.tracking import sender as sender_module
from dmlscale.tracking.sender import Sender
from dmlscale.tracking.spool import Record, Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool.jsonl")
    yield spool
    spool.close()


class _Receiver:
    """Takes records, after failing as often as it is told to."""

    def __init__(self, num_failures: int = 0) -> None:
        self.num_failures = num_failures
        self.values: list[int] = []
        self.batches: list[int] = []

    def deliver(self, records: Sequence[Record]) -> None:
        if self.num_failures:
            self.num_failures -= 1
            raise ConnectionError("server is down\nmore about it")
        self.values += [record.fields["v"] for record in records]
        self.batches.append(len(records))


def test_all_records_arrive_once_in_order_and_in_batches(spool: Spool) -> None:
    receiver = _Receiver()
    spool.append({"v": i} for i in range(2500))
    sender = Sender(spool, receiver.deliver)
    assert sender.drain(5) == 0
    assert sender.stop()
    assert receiver.values == list(range(2500))
    assert max(receiver.batches) == sender_module.RECORDS_PER_BATCH


def test_failures_are_repeated_and_told_once(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    receiver = _Receiver(num_failures=2)
    spool.append({"v": i} for i in range(10))
    sender = Sender(spool, receiver.deliver, interval_s=0.01)
    assert sender.drain(10) == 0
    time.sleep(0.1)
    sender.stop()
    assert receiver.values == list(range(10))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert "ConnectionError: server is down);" in warnings[0]
    assert warnings[1] == "tracking: reachable again"


def test_drain_ends_a_long_pause(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "_FIRST_PAUSE_S", 60.0)
    receiver = _Receiver(num_failures=1)
    spool.append([{"v": 1}])
    sender = Sender(spool, receiver.deliver)
    time.sleep(0.1)
    start = time.monotonic()
    assert sender.drain(10) == 0
    assert time.monotonic() - start < 3
    sender.stop()


def test_a_receiver_that_hangs_holds_nobody_up(spool: Spool) -> None:
    release = threading.Event()
    spool.append([{"v": 1}])

    def hang(records: Sequence[Record]) -> None:
        release.wait(20)

    sender = Sender(spool, hang)
    time.sleep(0.05)
    start = time.monotonic()
    spool.append([{"v": 2}])
    assert sender.drain(0.2) == 2
    assert not sender.stop(0.1)
    assert time.monotonic() - start < 2
    release.set()
