"""An append-only file of what is to be sent, and how far it has been.

`000003.jsonl` holds one JSON object per line, numbered from 1; `000003.jsonl.sent` the number and byte position up to
which the receiver has confirmed. Every line is handed to the operating system at once, so a killed process loses
nothing (a machine that loses power may lose the last seconds). One process writes a spool; a later one may send it.
"""

from __future__ import annotations

import collections
import itertools
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

Fields = Mapping[str, Any]
MOST_WAITING = 100_000
"""Records that are kept in memory while the disk is full."""
_LINES_PER_WRITE = 1000
_METRICS = re.compile(rb'\{"n":\d+,"kind":"metrics",')


class Record(NamedTuple):
    """One line."""

    number: int
    end: int | None  # byte position behind it; None while it is in memory only
    fields: dict[str, Any]


class Spool:
    """What one process has written, for the one that sends it.

    Args:
        path: of the file.
        end: what lies behind this byte position is not read; None for the present end of the file.
        again: read all of it, also what was sent.
    """

    def __init__(self, path: Path, *, end: int | None = None, again: bool = False) -> None:
        self.path = path
        self._sent_path = path.with_name(path.name + ".sent")
        self.end: int | None = path.stat().st_size if end is None else end
        self._sent, self._position = (0, 0) if again else self._read_sent()
        self._written = self._last_number()

    @property
    def num_pending(self) -> int:
        """Records that are written and not yet confirmed."""
        return self._written - self._sent

    def pending(self, limit: int) -> list[Record]:
        """The oldest records that are not yet confirmed, at most ``limit``."""
        return list(itertools.islice(self.records(), limit))

    def confirm(self, last: Record) -> None:
        """Everything up to and including ``last`` has arrived and is not needed again."""
        if last.end is not None:
            self._position = last.end
        temporary = self._sent_path.with_name(self._sent_path.name + ".new")
        with suppress(OSError):  # a full disk: after a kill they are sent again, which changes nothing
            temporary.write_text(json.dumps({"n": last.number, "position": self._position}))
            os.replace(temporary, self._sent_path)
        self._sent = last.number  # last: whoever waits for it may end the process, and the next one reads the file

    def rewind(self) -> None:
        """Nothing is confirmed any more."""
        self._sent, self._position = 0, 0

    def records(self, *, but_metrics: bool = False) -> Iterator[Record]:
        """Those that are on disk and not yet confirmed."""
        for position, line in self._lines():
            if but_metrics and _METRICS.match(line):
                continue
            record = _parse(line, position)
            if record is None:
                logger.warning("tracking: a line of %s cannot be read and is left out", self.path)
            elif record.number > self._sent:
                yield record

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Whole lines, with the byte position behind each."""
        with self.path.open("rb") as file:
            file.seek(self._position)
            position = self._position
            for line in file:
                position += len(line)
                if (self.end is not None and position > self.end) or not line.endswith(b"\n"):
                    return
                yield position, line

    def _last_number(self) -> int:
        for end, line in collections.deque(self._lines(), maxlen=1):  # a million may wait: only the last is parsed
            record = _parse(line, end)
            if record is not None:
                return max(record.number, self._sent)
        return max((record.number for record in self.records()), default=self._sent)

    def _read_sent(self) -> tuple[int, int]:
        try:
            sent = json.loads(self._sent_path.read_text())
            number, position = int(sent["n"]), int(sent["position"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0  # sending again is harmless: the receiver knows its last steps
        if position > self.path.stat().st_size:
            return 0, 0  # the spool was replaced by another one
        return number, position


class OwnSpool(Spool):
    """A new spool that this process writes; safe to append to and read from in different threads. `close` it.

    While the disk is full, records wait in memory: they can be sent, and are written once there is space.

    Args:
        path: of the file.

    Raises:
        FileExistsError: another process has it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._lock = threading.Lock()
        self._waiting: list[tuple[int, bytes]] = []
        self.num_lost = 0
        super().__init__(path)
        self.end = None  # it grows

    @property
    def num_waiting(self) -> int:
        """Records that the disk has had no space for yet."""
        return len(self._waiting)

    def begin(self, header: Fields) -> None:
        """Write what is not sent, as the first line."""
        with self._lock:
            self._waiting.append((0, _line(0, header)))
            self._write_waiting()

    def append(self, lines: Iterable[Fields]) -> None:
        """Write records; unless the disk is full, they are with the operating system when this returns.

        Raises:
            ValueError: the spool is closed.
        """
        with self._lock:
            if self._file.closed:
                raise ValueError(f"{self.path} is closed")
            self._write_waiting()
            for fields in lines:
                if len(self._waiting) >= MOST_WAITING:
                    self.num_lost += 1
                    continue
                self._written += 1
                self._waiting.append((self._written, _line(self._written, fields)))
            self._write_waiting()

    def pending(self, limit: int) -> list[Record]:
        """See `Spool`."""
        if not self._waiting:
            return super().pending(limit)
        with self._lock:  # none may move from memory to the file between the two looks
            records = super().pending(limit)
            for number, line in self._waiting:
                if number > self._sent and len(records) < limit:
                    fields = json.loads(line)
                    del fields["n"]
                    records.append(Record(number, None, fields))
        return records

    def close(self) -> None:
        """Close the file; what is pending stays in it."""
        with self._lock:
            if not self._file.closed:
                self._write_waiting()
                self._file.close()

    def _write_waiting(self) -> None:
        while self._waiting:
            data = b"".join(line for _, line in self._waiting[:_LINES_PER_WRITE])
            try:
                size = self._file.seek(0, os.SEEK_END)
                if self._file.write(data) != len(data):
                    self._file.truncate(size)  # half a line would spoil the next one
                    return
            except OSError:
                return
            del self._waiting[:_LINES_PER_WRITE]


def _parse(line: bytes, end: int) -> Record | None:
    try:
        fields = json.loads(line)
        return Record(int(fields.pop("n")), end, fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _line(number: int, fields: Fields) -> bytes:
    return json.dumps({"n": number, **fields}, separators=(",", ":")).encode() + b"\n"
