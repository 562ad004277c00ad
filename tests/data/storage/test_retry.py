from __future__ import annotations

import threading
import time

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.storage.retry import Retry
from dmlscale.data.storage.transfer_errors import ShardError, TransferError, TransferStopped


class Flaky:
    """Fails ``times`` times and then gives 7; notes when it was called."""

    def __init__(self, times: int, error: type[Exception] = TransferError) -> None:
        self.times, self.error, self.calls = times, error, list[float]()

    def __call__(self) -> int:
        self.calls.append(time.monotonic())
        if len(self.calls) <= self.times:
            raise self.error("no luck")
        return 7


def test_success_after_failures() -> None:
    flaky = Flaky(3)
    assert Retry(5, 0.01, 0.02).call(flaky, "http://host/a") == 7
    assert len(flaky.calls) == 4


def test_other_errors_pass_at_once() -> None:
    flaky = Flaky(9, DataError)
    with pytest.raises(DataError, match="no luck"):
        Retry(5).call(flaky, "http://host/a")
    assert len(flaky.calls) == 1


def test_the_last_attempt_is_at_the_end_of_the_time() -> None:
    flaky = Flaky(10**9)
    with pytest.raises(ShardError, match=r"http://host/a could not be read: \d+ attempts in 0\.\d s, .*no luck"):
        Retry(0.5, 0.01, 10).call(flaky, "http://me:secret@host/a")
    assert 0.4 < flaky.calls[-1] - flaky.calls[0] < 0.6
    assert 4 < len(flaky.calls) < 40


def test_the_time_runs_from_the_first_failure() -> None:
    """A large file may break off after longer than the time for retries."""
    flaky = Flaky(1)

    def slow() -> int:
        time.sleep(0.3)
        return flaky()

    assert Retry(0.2, 0.01, 0.02).call(slow, "http://host/a") == 7


def test_time_that_others_have_spent_counts() -> None:
    flaky = Flaky(9)
    with pytest.raises(ShardError, match="1 attempts"):
        Retry(5).call(flaky, "http://host/a", spent_seconds=6)


def test_one_warning_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    Retry(5, 0.001, 0.002).call(Flaky(30), "http://host/a")
    assert [(r.name, r.levelname) for r in caplog.records] == [("dmlscale.data", "WARNING")]
    assert caplog.messages == ["http://host/a: attempt 1 failed (no luck); trying for another 5 s"]


def test_waiting_can_be_stopped() -> None:
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    began = time.monotonic()
    with pytest.raises(TransferStopped):
        Retry(60, 30, 30).call(Flaky(10**9), "http://host/a", stop=stop)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("values", [(-1, 1, 1), (1, 0, 1), (1, 2, 1)])
def test_impossible_settings(values: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="retry_seconds="):
        Retry(*values)
