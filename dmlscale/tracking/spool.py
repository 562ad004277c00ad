"""An append-only file of what is to be sent, and how far it has been.

`spool.jsonl` holds one JSON object per line, numbered from 1; `spool.jsonl.sent` the number and byte position
up to which the receiver has confirmed. Every line is handed to the operating system at once, so a killed
process loses nothing (a machine that loses power may lose the last seconds). One writer at a time.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Fields = Mapping[str, Any]


class Record(NamedTuple):
    """One line."""

    number: int
    end: int  # byte position behind it
    fields: dict[str, Any]


class Spool:
    """Owns the two files; safe to append to and read from in different threads. `close` it.

    Args:
        path: of the file; made if absent, continued if present. A last line that a kill has torn is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sent_path = path.with_name(path.name + ".sent")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._written = _cut_torn_line(path)
        self._sent, self._position = self._read_sent()
        self._file = path.open("ab", buffering=0)

    @property
    def last_number(self) -> int:
        """The number of the newest record; 0 if there is none."""
        return self._written

    @property
    def num_pending(self) -> int:
        """Records that are written and not yet confirmed."""
        return self._written - self._sent

    def append(self, lines: Iterable[Fields]) -> None:
        """Write records; they are with the operating system when this returns."""
        with self._lock:
            data = bytearray()
            number = self._written
            for fields in lines:
                number += 1
                data += json.dumps({"n": number, **fields}, separators=(",", ":")).encode() + b"\n"
            size = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(data) != len(data):
                    raise OSError(f"no space left for {self.path}")
            except OSError:
                self._file.truncate(size)  # half a line would spoil the next one
                raise
            self._written = number

    def pending(self, limit: int) -> list[Record]:
        """The oldest records that are not yet confirmed, at most ``limit``."""
        records: list[Record] = []
        with self.path.open("rb") as file:
            file.seek(self._position)
            position = self._position
            for line in file:
                if len(records) == limit or not line.endswith(b"\n"):
                    break
                position += len(line)
                fields = json.loads(line)
                records.append(Record(fields.pop("n"), position, fields))
        return records

    def confirm(self, last: Record) -> None:
        """Everything up to and including ``last`` has arrived and is not needed again."""
        self._sent, self._position = last.number, last.end
        temporary = self._sent_path.with_name(self._sent_path.name + ".new")
        temporary.write_text(json.dumps({"n": last.number, "position": last.end}))
        os.replace(temporary, self._sent_path)

    def close(self) -> None:
        """Close the file; what is pending stays in it."""
        self._file.close()

    def _read_sent(self) -> tuple[int, int]:
        try:
            sent = json.loads(self._sent_path.read_text())
            number, position = int(sent["n"]), int(sent["position"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0  # sending again is harmless: the receiver knows its last steps
        if position > self.path.stat().st_size or number > self._written:
            return 0, 0  # the spool was replaced by another one
        return number, position


def _cut_torn_line(path: Path) -> int:
    """Make the file end with a whole line; the number of its last record."""
    path.touch()
    with path.open("r+b") as file:
        whole, last = 0, b""
        for line in file:
            if not line.endswith(b"\n"):
                break
            whole, last = whole + len(line), line
        file.truncate(whole)
    return int(json.loads(last)["n"]) if last else 0
