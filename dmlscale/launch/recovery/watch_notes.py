"""What a worker's watchdog leaves behind: why it ended its process, and where all threads of it were."""

from __future__ import annotations

import faulthandler
import json
import threading
from pathlib import Path

from dmlscale.distributed.verdicts import Verdict
from dmlscale.launch.recovery.attempt import Attempt

# Shared storage may hang as well: nobody waits for longer than this for words about it.
_LONGEST_WRITE_S = 5.0


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
        stacks = stem.with_name(f"{stem.name}.stacks.txt") if verdict.kind == "stalled" else None
        writing = threading.Thread(target=self._write, args=(verdict, stem, stacks), name="watch notes", daemon=True)
        writing.start()
        writing.join(_LONGEST_WRITE_S)
        return stacks

    def _write(self, verdict: Verdict, stem: Path, stacks: Path | None) -> None:
        note = {
            "rank": self._rank,
            "host": self._host,
            "kind": verdict.kind,
            "message": verdict.message,
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
