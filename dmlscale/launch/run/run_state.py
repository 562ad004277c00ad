"""In which state a run is: one small file in its folder, written by its driver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from dmlscale.launch.run.lease import read_holder, this_process
from dmlscale.launch.run.whole_file import write_whole
from dmlscale.training import checkpoint
from dmlscale.training.checkpoint.errors import CheckpointError

Name = Literal["starting", "training", "restarting", "waiting", "stopping", "stopped", "finished", "failed"]

STATE_FILE = "state.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Args:
        name: starting: data and tracker are looked at; training: workers are asked for or at work; restarting: they
            were lost and start again; waiting: the cluster lacks room for them; stopping: they were asked to save and
            stop; stopped, failed: it can be continued; finished: it cannot, there is nothing left to do.
        step: of the newest checkpoint, when this was written.
        time: when it was written, ISO 8601 in UTC.
        reason: why, where there is something to say.
    """

    name: Name
    step: int
    time: str
    reason: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.name == "finished"


def write_state(folder: Path, name: Name, *, reason: str = "") -> None:
    """Notes the state, all of it or nothing. A disk that is full does not end the run: it keeps the one before."""
    state = RunState(name, newest_step(folder), datetime.now(UTC).isoformat(timespec="seconds"), reason)
    with suppress(OSError):
        write_whole(folder / STATE_FILE, json.dumps(asdict(state), indent=1) + "\n")


def read_state(folder: Path) -> RunState | None:
    """What was noted last; None where nothing was, or it cannot be read."""
    try:
        state = RunState(**json.loads((folder / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return state if state.name in get_args(Name) else None


def newest_step(folder: Path) -> int:
    """Of the newest checkpoint: in the run's folder or, kept elsewhere, the one last told of; 0 without one."""
    here = None
    with suppress(OSError, CheckpointError):  # damaged, or just removed: not for this to complain of
        here = checkpoint.latest(folder / "checkpoints")
    return _last(folder, "checkpoint") if here is None else int(here.name.removeprefix("step_"))


def last_step(folder: Path) -> int:
    """The last one of which rank 0 has told anything, in the order of telling; 0 where there is none."""
    return _last(folder, "step")


def _last(folder: Path, key: str) -> int:
    """The step of the last entry of the progress file that has a key."""
    mark, step = f'"{key}"', 0
    with suppress(OSError), (folder / "progress.jsonl").open() as file:
        for line in file:
            if mark not in line:
                continue
            with suppress(ValueError):  # cut off by a full disk
                entry = json.loads(line)
                step = int(entry["step"]) if key in entry else step
    return step


@contextmanager
def state_on_error(folder: Path) -> Iterator[None]:
    """A run whose block ends with an error is failed, or stopped if someone interrupted it.

    It is neither where another driver has taken it over, and goes on.
    """
    try:
        yield
    except BaseException as error:
        if read_holder(folder) in (None, this_process()):
            interrupted = isinstance(error, KeyboardInterrupt)
            reason = "interrupted" if interrupted else f"{type(error).__name__}: {error}".splitlines()[0]
            write_state(folder, "stopped" if interrupted else "failed", reason=reason)
        raise
