from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.storage import retry
from dmlscale.data.storage.retry import Retry
from dmlscale.data.storage.transfer_errors import ShardError, TransferError, TransferStopped


class Clock(threading.Event):
    """The time goes on where it is waited for, and only there."""

    now = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Flaky:
    """Fails ``times`` times and then gives 7; notes when it was called."""

    def __init__(
        self, times: int, error: type[Exception] = TransferError, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.times, self.error, self.now, self.calls = times, error, now, list[float]()

    def __call__(self) -> int:
        self.calls.append(self.now())
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


def test_the_last_attempt_is_at_the_end_of_the_time(clock: Clock) -> None:
    flaky = Flaky(10**9, now=lambda: clock.now)
    with pytest.raises(ShardError, match=r"http://host/a could not be read: \d+ attempts in 0\.\d s, .*no luck"):
        Retry(0.5, 0.01, 10).call(flaky, "http://me:secret@host/a", stop=clock)
    assert flaky.calls[-1] - flaky.calls[0] == pytest.approx(0.5)
    assert 4 < len(flaky.calls) < 40


def test_the_time_runs_from_the_first_failure(clock: Clock) -> None:
    """A large file may break off after longer than the time for retries."""
    flaky = Flaky(1)

    def slow() -> int:
        clock.now += 0.3
        return flaky()

    assert Retry(0.2, 0.01, 0.02).call(slow, "http://host/a", stop=clock) == 7


def test_time_that_others_have_spent_counts() -> None:
    flaky = Flaky(9)
    with pytest.raises(ShardError, match="1 attempts"):
        Retry(5).call(flaky, "http://host/a", spent_seconds=6)


def test_one_warning_in_a_while(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    Retry(5, 0.001, 0.002).call(Flaky(30), "http://host/a", stop=clock)
    (told,) = [record for record in caplog.records if record.name == "dmlscale.data"]
    assert told.levelname == "WARNING"
    assert told.getMessage() == "http://host/a: attempt 1 failed (no luck); trying for another 5 s"


def test_waiting_can_be_stopped() -> None:
    class SetWhileWaiting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            return super().wait(timeout)

    flaky = Flaky(10**9)
    with pytest.raises(TransferStopped):
        Retry(60, 30, 30).call(flaky, "http://host/a", stop=SetWhileWaiting())
    assert len(flaky.calls) == 1


@pytest.mark.parametrize("values", [(-1, 1, 1), (1, 0, 1), (1, 2, 1)])
def test_impossible_settings(values: tuple[float, float, float]) -> None:
    with pytest.raises(DataError, match="retry_seconds="):
        Retry(*values)
