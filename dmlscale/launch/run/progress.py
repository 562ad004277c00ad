"""What rank 0 says while it works: one JSON object a line, for the driver to show and for others to read."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmlscale.launch.recovery.attempt import Attempt


class Progress:
    """Appends to a run's progress file.

    Entries have one of: `message` (a text), `fault` (a text: something went wrong, and what becomes of it), `metrics`,
    `evaluation` or `checkpoint`; and `attempt`, the number of this start of the workers.

    Args:
        path: of the file.
        attempt: of these workers; once a later one has begun, nothing is written any more.
        speaks: whether this rank does; the others say nothing.
    """

    def __init__(self, path: Path, attempt: Attempt, *, speaks: bool) -> None:
        self._path, self._attempt, self._speaks = path, attempt, speaks
        self._lock = threading.Lock()  # the thread that writes a checkpoint says so itself
        self._unwritten, self._has_written = b"", False

    def message(self, text: str) -> None:
        """Say a line."""
        self.say(message=text)

    def fault(self, text: str) -> None:
        """Say in a line what went wrong."""
        self.say(fault=text)

    def has_evaluation(self, step: int) -> bool:
        """Whether the file tells an evaluation at a step, by these workers or earlier ones."""
        return any("evaluation" in entry and entry.get("step") == step for entry in entries_of(self._path))

    def say(self, **entry: Any) -> None:
        """Write an entry. A disk that is full does not end the run: it is written with a later one."""
        if not self._speaks:
            return
        with self._lock:
            self._unwritten += json.dumps(entry | {"attempt": self._attempt.number}).encode() + b"\n"
            try:
                if not self._attempt.is_current():
                    return
                with self._path.open("ab+", buffering=0) as file:
                    size = file.seek(0, os.SEEK_END)
                    if size and not self._has_written:
                        file.seek(size - 1)
                        if file.read(1) != b"\n":  # an earlier start was killed within a line
                            self._unwritten = b"\n" + self._unwritten
                        self._has_written = True
                    if file.write(self._unwritten) != len(self._unwritten):
                        file.truncate(size)  # half a line would spoil the next one
                        return
            except OSError:
                return
            self._unwritten = b""


def entries_of(path: Path) -> Iterator[dict[str, Any]]:
    """What a progress file tells; nothing if there is none. A line that a kill has torn is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry
