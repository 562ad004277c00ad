"""A thread that empties spools into a receiver, for as long as it takes, without anyone waiting for it."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from dmlscale.redaction import shown
from dmlscale.tracking.spool import Record

logger = logging.getLogger(__name__)

Deliver = Callable[[Sequence[Record]], None]
"""Sends records in order. Raises if they may not have arrived; then the same ones come again."""


class Source(Protocol):
    """Where records are: `Spools`."""

    @property
    def num_pending(self) -> int:
        """Records that have not arrived."""
        ...

    def is_current(self) -> bool:
        """Whether it is still this process that sends them."""
        ...

    def pending(self, limit: int) -> list[Record]:
        """The oldest that have not arrived, at most ``limit``."""
        ...

    def confirm(self, last: Record) -> None:
        """Everything up to ``last`` has arrived."""
        ...

    def rewind(self) -> None:
        """Nothing has arrived."""
        ...

    def is_known_away(self) -> bool:
        """Whether someone has been told that the receiver is away, also by an earlier process."""
        ...

    def note_away(self, is_away: bool) -> None:
        """Remember whether it is, for this process and later ones."""
        ...


class ReceiverLostAllError(Exception):
    """The receiver has lost what arrived before: everything is to be sent from its beginning."""


class Say(Protocol):
    """Tells the user what went wrong (``fault``), or that it is over (``message``)."""

    def __call__(self, *, fault: str = ..., message: str = ...) -> None:
        """One line, by its kind."""
        ...


def log_it(*, fault: str = "", message: str = "") -> None:
    """Says it in the log, where nobody else listens."""
    logger.warning("%s", fault or message)


RECORDS_PER_BATCH = 1000
_CAUSE = re.compile(
    r"(?:\[Errno -?\d+\] )?(Connection refused|Name or service not known|No route to host|"
    r"Network is unreachable|Connection reset by peer|Read timed out|timed out|"
    r"too many \d+ error responses|failed with error code \d+)"
)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_HOPELESS_S = 5.0


class Sender:
    """Owns the thread; does not own the source. `stop` it.

    It ends by itself when another process has taken over.

    Args:
        source: where the records are.
        deliver: the receiver. May be slow, may block, may fail.
        interval_s: how long records are collected before they are sent.
        say: who is told, once, that the receiver is away, and that it is back.
    """

    def __init__(
        self,
        source: Source,
        deliver: Deliver,
        *,
        interval_s: float = 1.0,
        say: Say = log_it,
    ) -> None:
        self._source = source
        self._deliver = deliver
        self._interval_s = interval_s
        self._say = say
        self._hurry = threading.Event()
        self._stopped = threading.Event()
        self._is_failing = source.is_known_away()
        self.is_superseded = False
        self.last_error = ""
        # A daemon: a receiver that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="tracking-sender", daemon=True)
        self._thread.start()

    def drain(self, timeout_s: float) -> int:
        """Send everything now; returns the number of records still pending when the time is over.

        A receiver that is away now and does not come back within 5 s is not waited for any longer.
        """
        start = time.monotonic()
        self._hurry.set()
        while self._source.num_pending and self._thread.is_alive():
            waited = time.monotonic() - start
            if waited > timeout_s or (self.last_error and waited > _HOPELESS_S):
                break
            time.sleep(0.02)
        return self._source.num_pending

    def stop(self, timeout_s: float = 1.0) -> bool:
        """Ask the thread to end; whether it has."""
        self._stopped.set()
        self._hurry.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stopped.is_set() and not self.is_superseded:
            try:
                num_sent = self._send_some()
            except Exception as error:  # whatever is wrong with the receiver must not end the training
                self.last_error = first_line(error)
                if not self._is_failing:
                    self._say(
                        fault=f"tracking: the store cannot be reached ({self.last_error}): the training goes on, and "
                        "what it records waits on disk"
                    )
                    self._note_away(True)
                self._rest(pause, hurried_s=min(pause, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
                continue
            if num_sent:
                if self._is_failing:
                    self._say(message="tracking: the store is reachable again, and gets what has waited")
                    self._note_away(False)
                pause, self.last_error = _FIRST_PAUSE_S, ""
            if num_sent < RECORDS_PER_BATCH:
                self._rest(self._interval_s, hurried_s=0.02)

    def _note_away(self, is_away: bool) -> None:
        self._is_failing = is_away
        self._source.note_away(is_away)

    def _rest(self, seconds: float, *, hurried_s: float) -> None:
        """Wait; the call to hurry ends a long wait and makes all later ones short."""
        if self._hurry.is_set():
            self._stopped.wait(hurried_s)
        else:
            self._hurry.wait(seconds)

    def _send_some(self) -> int:
        records = self._source.pending(RECORDS_PER_BATCH) if self._source.num_pending else []
        if not self._source.is_current():
            self.is_superseded = True
            return 0
        if not records:
            return 0
        try:
            self._deliver(records)
        except ReceiverLostAllError as lost:
            self._say(fault=f"tracking: {lost}: it is recorded anew, from its beginning")
            self._source.rewind()
            return 0
        self._source.confirm(records[-1])
        return len(records)


def first_line(error: Exception) -> str:
    """What is wrong, in one line without secrets."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    # The client wraps the cause, such as "[Errno 111] Connection refused", into the whole history of its request.
    cause = _CAUSE.findall(lines[0])
    return cause[-1] if cause else f"{type(error).__name__}: {shown(lines[0])[:200]}"
