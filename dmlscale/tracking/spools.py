"""The spools of a run: one per process that ever recorded it, sent in their order by the newest of them.

A run is recorded by several processes in turn: its driver says what the run is, the workers of each attempt what they
measure, a driver that gives up how it ended. Some of them may live on, cut off, when the next has begun. So each writes
a file of its own, with the next free number, and whoever has the highest number may send: first what the older ones
have left, up to where they were when it began, then its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from dmlscale.tracking.spool import OwnSpool, Record, Spool

FOLDER = "tracking"
_AWAY = "away"  # a file that is there while users know that the store is away: each restart need not say so again
_BEFORE = "tracking.jsonl"  # the one spool of runs that were begun when all processes wrote to the same


class Spools:
    """All spools of a run, taken over by this process. `close` it.

    Args:
        run_folder: of the run, on storage that all its processes see.
        starts: whether the run starts or goes on from here, so that how it ended before no longer counts.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, run_folder: Path, *, starts: bool = False) -> None:
        self.folder = run_folder.absolute() / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        adopt_old_layout(run_folder)
        self.own = self._next()
        self._number = int(self.own.path.stem)
        self._older, last_start = _open(self.folder, before=self._number)
        self._last_start = self._number if starts else last_start
        ends = {spool.path.stem: spool.path.stat().st_size if spool.end is None else spool.end for spool in self._older}
        self.own.begin({"kind": "begin", "starts": starts, "ends": ends, "time_ms": time.time_ns() // 1_000_000})

    @property
    def num_pending(self) -> int:
        """Records of all spools that are written and not yet confirmed."""
        return sum(spool.num_pending for spool in (*self._older, self.own))

    def is_current(self) -> bool:
        """Whether no other process has taken over since."""
        return max(numbers(self.folder)) == self._number

    def pending(self, limit: int) -> list[Record]:
        """The oldest records that are not yet confirmed, at most ``limit``, all of one spool."""
        spool = self._first_pending()
        records = spool.pending(limit)
        if int(spool.path.stem) < self._last_start:
            for record in records:
                if record.fields["kind"] == "status":
                    record.fields["kind"] = "status before"  # the run has been continued since
        return records

    def confirm(self, last: Record) -> None:
        """Everything of `pending`, up to and including ``last``, has arrived."""
        self._first_pending().confirm(last)

    def rewind(self) -> None:
        """Everything is pending again."""
        for spool in (*self._older, self.own):
            spool.rewind()

    def is_known_away(self) -> bool:
        """Whether someone has been told that the store is away, also by an earlier process."""
        return (self.folder / _AWAY).exists()

    def note_away(self, is_away: bool) -> None:
        """Remember whether it is."""
        with suppress(OSError):  # a full disk: it is said once more then
            (self.folder / _AWAY).touch() if is_away else (self.folder / _AWAY).unlink(missing_ok=True)

    def close(self) -> None:
        """Close this process's spool; what is pending stays."""
        self.own.close()

    def __enter__(self) -> Spools:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_pending(self) -> Spool:
        return next((spool for spool in self._older if spool.num_pending), self.own)

    def _next(self) -> OwnSpool:
        while True:
            path = self.folder / f"{max(numbers(self.folder), default=0) + 1:06d}.jsonl"
            try:
                return OwnSpool(path)
            except FileExistsError:  # another process was faster
                continue


def numbers(folder: Path) -> list[int]:
    """Of the spools in a folder, ascending."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.jsonl"))


def num_undelivered(run_folder: Path) -> int:
    """Records of a run that its store has not confirmed. Takes nothing over."""
    return sum(spool.num_pending for spool in _open(run_folder / FOLDER)[0])


def holds_spools(run_folder: Path) -> bool:
    """Whether a folder is that of a run that was recorded."""
    return bool(numbers(run_folder / FOLDER)) or (run_folder / _BEFORE).is_file()


def read_all(run_folder: Path, *, but_metrics: bool = False) -> Iterator[dict[str, Any]]:
    """The fields of all records in their order, sent or not. Takes nothing over.

    Args:
        run_folder: of the run.
        but_metrics: leave out those, which are nearly all: many times as fast.
    """
    for spool in _open(run_folder / FOLDER, again=True)[0]:
        yield from (record.fields for record in spool.records(but_metrics=but_metrics))


def first_start(run_folder: Path) -> dict[str, Any]:
    """What the run is, as it was first written down.

    Raises:
        LookupError: nobody has.
    """
    for fields in read_all(run_folder, but_metrics=True):
        if fields["kind"] == "start":
            return fields
    raise LookupError(f"{run_folder} does not tell what its run is")


def forget_sent(run_folder: Path) -> None:
    """Everything is to be sent anew, as to another store."""
    for path in (run_folder / FOLDER).glob("*.sent"):
        path.unlink(missing_ok=True)


def _open(folder: Path, *, before: int | None = None, again: bool = False) -> tuple[list[Spool], int]:
    """The spools, each up to where the next process took over; and the number of the last that starts the run."""
    found = [number for number in numbers(folder) if before is None or number < before]
    headers = {number: _header(folder / f"{number:06d}.jsonl") for number in found}
    ends: dict[int, int] = {}
    for header in headers.values():
        for stem, end in header.get("ends", {}).items():
            ends[int(stem)] = min(int(end), ends.get(int(stem), int(end)))
    spools = [Spool(folder / f"{number:06d}.jsonl", end=ends.get(number), again=again) for number in found]
    return spools, max((number for number in found if headers[number].get("starts")), default=0)


def _header(path: Path) -> dict[str, Any]:
    """The first line, if it is one that `Spools` wrote."""
    try:
        with path.open("rb") as file:
            fields = json.loads(file.readline())
    except ValueError:  # torn by a kill: the process took over and recorded nothing
        return {}
    return fields if isinstance(fields, dict) and fields.get("kind") == "begin" else {}


def adopt_old_layout(run_folder: Path) -> None:
    """What is in the one spool of before becomes the oldest; its files stay where its records say, seen from here."""
    folder = run_folder.absolute() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, new in ((f"{_BEFORE}.files",) * 2, (f"{_BEFORE}.sent", "000000.jsonl.sent"), (_BEFORE, "000000.jsonl")):
        if (run_folder / name).exists():
            (run_folder / name).rename(folder / new)


def last_start(run_folder: Path) -> dict[str, Any]:
    """What the run is, as it was written down last.

    Raises:
        LookupError: nobody has.
    """
    start = first_start(run_folder)
    for fields in read_all(run_folder, but_metrics=True):
        if fields["kind"] == "start":
            start = fields
    return start
