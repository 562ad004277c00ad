"""What a worker's watchdog leaves behind: why it ended its process, and where all threads of it were.

The driver reads it, which hears of the worker's end from Ray only seconds later.
"""

from __future__ import annotations

import faulthandler
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dmlscale.distributed.verdicts import Verdict
from dmlscale.launch.recovery.attempt import Attempt
from dmlscale.launch.recovery.failures import Note
from dmlscale.launch.recovery.roster import read_places

# Shared storage may hang as well: nobody waits for longer than this for words about it.
_LONGEST_WRITE_S = 5.0
# From the first verdict that is found: the others have written theirs by then, and have ended, so that no checkpoint
# becomes whole any more. What Ray hears of as soon as this is told with all that Ray knows.
_SETTLED_AFTER_S = 1.0
_MOST_ASKED_AT_ONCE = 32


class WatchNotes:
    """``<attempt>.rank_<rank>.json`` in the folder of the run's attempts, and ``.stacks.txt`` beside it.

    Args:
        attempt: this start of the workers; None writes nothing.
        rank: of this process.
        host: its machine.
    """

    def __init__(self, attempt: Attempt | None, rank: int, host: str) -> None:
        self._attempt, self._rank, self._host = attempt, rank, host

    def write(self, verdict: Verdict) -> Path | None:
        """Writes what it can within a few seconds; storage that is away or full is nothing to fail for.

        Returns:
            the file of the stacks, which are written where ranks are stalled.
        """
        if self._attempt is None:
            return None
        stem = self._attempt.folder / f"{self._attempt.number:06d}.rank_{self._rank}"
        stacks = self._stacks_of(self._rank) if verdict.kind == "stalled" else None
        writing = threading.Thread(target=self._write, args=(verdict, stem, stacks), name="watch notes", daemon=True)
        writing.start()
        writing.join(_LONGEST_WRITE_S)
        return stacks

    def _stacks_of(self, rank: int) -> Path | None:
        if self._attempt is None:
            return None
        return self._attempt.folder / f"{self._attempt.number:06d}.rank_{rank}.stacks.txt"

    def _write(self, verdict: Verdict, stem: Path, stacks: Path | None) -> None:
        note = {
            "rank": self._rank,
            "host": self._host,
            "kind": verdict.kind,
            "message": verdict.message + (f" (stacks: {self._stacks_of(verdict.suspects[0])})" if stacks else ""),
            "step": verdict.step,
            "suspects": list(verdict.suspects),
        }
        try:
            partial = stem.with_name(f"{stem.name}.partial")
            partial.write_text(json.dumps(note) + "\n")
            partial.replace(stem.with_name(f"{stem.name}.json"))
            if stacks is not None:
                with stacks.open("w") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            return


def read_notes(folder: Path, after: int) -> list[Note]:
    """Those of the start of the workers that follows another; what is half written or damaged is left out.

    Args:
        folder: of the run's attempts.
        after: number of the start before. Its workers may write theirs only now, from a node that is back.
    """
    try:
        paths = sorted(folder.glob("*.rank_*.json"))
    except OSError:  # storage that is away for a moment
        return []
    notes = []
    for path in paths:
        try:
            if int(path.name.partition(".")[0]) > after:
                said = json.loads(path.read_text())
                notes.append(Note(int(said["rank"]), str(said["kind"]), str(said["message"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return notes


class EarlyNotice:
    """Looks for the verdict by which one start of the workers ends, while Ray has not told of that yet.

    On both sides of a cut network ranks take those beyond for lost, and all may see the same storage. Right is who is
    on the driver's side: whose node answers.

    Args:
        folder: of the run's attempts.
        after: number of the start before.
        logs: where the workers have written their places.
        answers: whether the node at an address can be reached from here.
    """

    def __init__(self, folder: Path, after: int, logs: Path, answers: Callable[[str], bool]) -> None:
        self._folder, self._after, self._logs, self._answers = folder, after, logs, answers
        self._found_at: float | None = None

    def look(self) -> Note | None:
        """The verdict, once it is certain; of ranks that failed by an error of their own Ray tells soon, and more."""
        notes = [note for note in read_notes(self._folder, self._after) if note.kind in ("lost", "stalled")]
        if not notes:
            return None
        now = time.monotonic()
        if self._found_at is None:
            self._found_at = now
        if now - self._found_at < _SETTLED_AFTER_S:
            return None
        places = read_places(self._logs)
        address_of = {note.rank: places[note.rank].address for note in notes if note.rank in places}
        addresses = sorted(set(address_of.values()))
        with ThreadPoolExecutor(_MOST_ASKED_AT_ONCE) as pool:
            answers = dict(zip(addresses, pool.map(self._answers, addresses), strict=True))
        right = [note for note in notes if note.rank in address_of and answers[address_of[note.rank]]]
        return min(right, key=lambda note: note.rank, default=None)
