"""How long and how often a transfer that failed is tried again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, sleep_using_event
from tenacity.wait import wait_random_exponential

from dmlscale.data.errors import DataError
from dmlscale.data.storage.transfer_errors import ShardError, TransferError, TransferStopped
from dmlscale.redaction import shown

logger = logging.getLogger("dmlscale.data")

T = TypeVar("T")

_SECONDS_BETWEEN_WARNINGS = 10.0


@dataclass(frozen=True)
class Retry:
    """Waits between attempts: random, up to twice as long each time.

    Random, because all workers of a run meet the same failure at the same moment.
    """

    seconds: float = 120.0  # after the first failure no attempt begins later than this
    first_wait: float = 0.2  # seconds, the bound of the first wait
    longest_wait: float = 10.0  # seconds

    def __post_init__(self) -> None:
        if self.seconds < 0 or self.first_wait <= 0 or self.longest_wait < self.first_wait:
            raise DataError(
                f"retry_seconds={self.seconds}, first_wait={self.first_wait}, longest_wait={self.longest_wait}: "
                f"must be at least 0, above 0, and at least first_wait"
            )

    def call(
        self, function: Callable[[], T], url: str, *, spent_seconds: float = 0.0, stop: threading.Event | None = None
    ) -> T:
        """Call ``function`` until it does not raise a TransferError; other errors pass.

        Args:
            function: the transfer.
            url: of the file, for messages.
            spent_seconds: of ``seconds``, waited for others who tried the same.
            stop: when set, waiting ends.

        Raises:
            ShardError: the last attempt failed as well.
            TransferStopped: ``stop`` was set.
        """
        attempts = _Attempts(self, url, spent_seconds)
        stop = stop or threading.Event()

        def attempt() -> T:
            if stop.is_set():
                raise TransferStopped
            return function()

        return Retrying(
            retry=retry_if_exception_type(TransferError),
            after=attempts.note_failure,
            wait=attempts.wait,
            stop=attempts.are_over,
            before_sleep=attempts.warn,
            retry_error_callback=attempts.give_up,
            sleep=sleep_using_event(stop),
        )(attempt)


class _Attempts:
    """The attempts at one file; its methods are tenacity's hooks, called in this order after each failure."""

    def __init__(self, retry: Retry, url: str, spent_seconds: float) -> None:
        self._seconds = max(0.0, retry.seconds - spent_seconds)
        self._wait = wait_random_exponential(retry.first_wait, retry.longest_wait)
        self._url = url
        self._first_failure: float | None = None
        self._last_warning = -float("inf")

    def note_failure(self, state: RetryCallState) -> None:
        # From the first failure on, not from the first attempt: a large file may break off after a long while.
        if self._first_failure is None:
            self._first_failure = time.monotonic()

    def wait(self, state: RetryCallState) -> float:
        return min(self._wait(state), self._left())

    def are_over(self, state: RetryCallState) -> bool:
        return self._left() <= 0

    def warn(self, state: RetryCallState) -> None:
        now = time.monotonic()
        if now - self._last_warning < _SECONDS_BETWEEN_WARNINGS:
            return
        self._last_warning = now
        logger.warning(
            "%s: attempt %d failed (%s); trying for another %.0f s",
            shown(self._url), state.attempt_number, _reason(state), self._left(),
        )  # fmt: skip

    def give_up(self, state: RetryCallState) -> NoReturn:
        raise ShardError(
            f"{shown(self._url)} could not be read: {state.attempt_number} attempts in "
            f"{state.seconds_since_start or 0.0:.1f} s, the last one: {_reason(state)}. "
            f"Is the server up? data.retry_seconds says how long to keep trying"
        )

    def _left(self) -> float:
        """Seconds for which attempts may still begin."""
        since = 0.0 if self._first_failure is None else time.monotonic() - self._first_failure
        return self._seconds - since


def _reason(state: RetryCallState) -> str:
    return str(state.outcome.exception()) if state.outcome is not None else ""
