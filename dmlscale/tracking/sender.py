"""A thread that empties a spool into a receiver, for as long as it takes, without anyone waiting for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from dmlscale.redaction import shown
from dmlscale.tracking.spool import Record, Spool

logger = logging.getLogger(__name__)

Deliver = Callable[[Sequence[Record]], None]
"""Sends records in order. Raises if they may not have arrived; then the same ones come again."""

RECORDS_PER_BATCH = 1000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class Sender:
    """Owns the thread; does not own the spool. `stop` it.

    Args:
        spool: where the records are.
        deliver: the receiver. May be slow, may block, may fail.
        interval_s: how long records are collected before they are sent.
    """

    def __init__(self, spool: Spool, deliver: Deliver, *, interval_s: float = 1.0) -> None:
        self._spool = spool
        self._deliver = deliver
        self._interval_s = interval_s
        self._hurry = threading.Event()
        self._stopped = threading.Event()
        # A daemon: a receiver that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="tracking-sender", daemon=True)
        self._thread.start()

    def drain(self, timeout_s: float) -> int:
        """Send everything now; returns the number of records still pending when the time is over."""
        deadline = time.monotonic() + timeout_s
        self._hurry.set()
        while self._spool.num_pending and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.02)
        return self._spool.num_pending

    def stop(self, timeout_s: float = 1.0) -> bool:
        """Ask the thread to end; whether it has."""
        self._stopped.set()
        self._hurry.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause, is_failing = _FIRST_PAUSE_S, False
        while not self._stopped.is_set():
            try:
                more = self._send_some()
            except Exception as error:  # whatever is wrong with the receiver must not end the training
                if not is_failing:
                    logger.warning(
                        "tracking: not reachable (%s); the training goes on, and what it records waits in %s",
                        _first_line(error), self._spool.path,
                    )  # fmt: skip
                is_failing = True
                self._rest(pause, hurried_s=min(pause, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            if is_failing:
                logger.warning("tracking: reachable again")
            is_failing, pause = False, _FIRST_PAUSE_S
            if not more:
                self._rest(self._interval_s, hurried_s=0.02)

    def _rest(self, seconds: float, *, hurried_s: float) -> None:
        """Wait; the call to hurry ends a long wait and makes all later ones short."""
        if self._hurry.is_set():
            self._stopped.wait(hurried_s)
        else:
            self._hurry.wait(seconds)

    def _send_some(self) -> bool:
        if not self._spool.num_pending:
            return False
        records = self._spool.pending(RECORDS_PER_BATCH)
        if records:
            self._deliver(records)
            self._spool.confirm(records[-1])
        return len(records) == RECORDS_PER_BATCH


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shown(lines[0])[:200]}" if lines else type(error).__name__
