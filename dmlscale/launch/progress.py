"""What rank 0 says while it works: one JSON object a line, for the driver to show and for others to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dmlscale.launch.attempt import Attempt


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
        self._unwritten: list[str] = []

    def say(self, **entry: Any) -> None:
        """Write an entry. A disk that is full does not end the run: it is written with a later one."""
        if not self._speaks:
            return
        self._unwritten.append(json.dumps(entry | {"attempt": self._attempt.number}) + "\n")
        try:
            if not self._attempt.is_current():
                return
            with self._path.open("a") as file:
                file.write("".join(self._unwritten))
        except OSError:
            return
        self._unwritten = []
