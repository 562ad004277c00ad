"""What a run has said and done so far, from its files alone."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any


class FileTail:
    """Lines of a file that grows, each read once."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new_lines(self) -> list[str]:
        """Whole lines since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return data.decode(errors="replace").splitlines()


@dataclass(frozen=True)
class Line:
    """One that was printed.

    Args:
        at: when, by this machine's monotonic clock.
        text: it.
    """

    at: float
    text: str


class TimedLog:
    """A log that grows for the time of a ``with`` block, each line with the time at which it came.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._tail, self._over = FileTail(path), threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.lines: list[Line] = []

    def __enter__(self) -> TimedLog:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def since(self, at: float, pattern: str = "") -> list[Line]:
        """Lines that came after a time and in which a pattern is found."""
        return [line for line in self.lines if line.at >= at and re.search(pattern, line.text)]

    def text(self) -> str:
        """All of it."""
        return "\n".join(line.text for line in self.lines)

    def _follow(self) -> None:
        while not self._over.wait(0.05):
            new = self._tail.new_lines()
            now = time.monotonic()  # not before: no line has a time at which it was not there yet
            self.lines += [Line(now, text) for text in new]


class ProgressLog:
    """The entries of a progress file, and where the run is.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._tail = FileTail(path)
        self.entries: list[dict[str, Any]] = []
        self.step, self.attempt = 0, 0

    def look(self) -> None:
        """Reads what is new."""
        for line in self._tail.new_lines():
            entry = json.loads(line)
            self.entries.append(entry)
            if "metrics" in entry:
                self.step, self.attempt = entry["step"], entry["attempt"]

    def steps(self) -> list[dict[str, Any]]:
        """Entries of steps, in the order in which they were made; a step that was repeated has several."""
        return [entry for entry in self.entries if "metrics" in entry]


class MlflowStore:
    """The SQLite file behind an MLflow server.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def runs(self) -> list[tuple[str, str]]:
        """(name, status) of each run."""
        return self._rows("select name, status from runs")

    def points(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a metric over all runs, in the order in which they arrived."""
        return self._rows("select step, value from metrics where key = ? order by rowid", metric)

    def _rows(self, query: str, *values: str) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=30)) as store:
            return store.execute(query, values).fetchall()
