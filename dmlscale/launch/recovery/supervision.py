"""Starting the workers again: how often, from where, and what is said of it.

Ray's own retries count all errors alike and say nothing, so each start of the workers is one of Ray's runs without any.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.errors import GaveUpError, WorkersFailedError
from dmlscale.launch.recovery.attempt import last_attempt
from dmlscale.launch.recovery.elastic import fewest_workers
from dmlscale.launch.recovery.failures import Failure, Note, classify, unwrapped
from dmlscale.launch.recovery.memory_kills import count_memory_kills
from dmlscale.launch.recovery.out_of_memory import is_on_device, memory_advice
from dmlscale.launch.recovery.roster import read_places
from dmlscale.launch.run.run_state import Name, last_step, newest_step, write_state
from dmlscale.launch.task import HANDS_OVER, Task

FAULTS_FILE = "faults.jsonl"
# Before the second, third, ... new start in a row: what is broken may need a moment, as a node that boots.
_PAUSES_S = (0.0, 5.0, 15.0, 30.0)
# Ray needs about a minute to notice a node that is off, and starts workers there until then: no failure of theirs.
_MOST_STARTS = 20
_START_PAUSE_S = 5.0
_LOOK_EVERY_S = 0.2

Result = dict[str, Any]
WITHOUT_WORKERS = "without_workers"
"""In a result: that the run was stopped while no workers were there to save it and to tell the tracker."""


def tell(line: str) -> None:
    """Prints a line for the user at once."""
    print(line, flush=True)


class AttemptFailedError(Exception):
    """One start of the workers has ended badly.

    Args:
        errors: by rank; -1 for an error that is no rank's.
        is_for_room: whether they did not even start, because the cluster had no room for them after all.
        is_for_start: whether some of them died before all had started.
    """

    def __init__(
        self, errors: Mapping[int, BaseException], *, is_for_room: bool = False, is_for_start: bool = False
    ) -> None:
        super().__init__(str(dict(errors)))
        self.errors, self.is_for_room, self.is_for_start = errors, is_for_room, is_for_start


class _StopAskedError(Exception):
    """Somebody asked the run to stop while no worker was there to save it; nothing is lost by leaving at once."""


class Supervisor:
    """Keeps the workers of one task at work.

    Args:
        task: what they do.
        resources: for it.
        attempt: starts the workers, whose logs and notes go to the folder, and returns rank 0's result; raises
            `AttemptFailedError`.
        lacking: what the cluster lacks for them, in one line; None if nothing.
        say: prints a line.
    """

    def __init__(
        self,
        task: Task,
        resources: ResourcesConfig,
        attempt: Callable[[Path], Result],
        lacking: Callable[[], str | None],
        say: Callable[[str], None] = tell,
    ) -> None:
        self._task, self._resources, self._attempt, self._lacking, self._say = task, resources, attempt, lacking, say
        self._folder = Path(task.folder)
        self._logs = self._folder / "ray"
        self._history: list[str] = []
        self._waits_for = ""
        self._num_starts = 0

    def run(self) -> Result:
        """The task's result, after as many starts as it takes.

        Raises:
            WorkersFailedError: with an error that a new start cannot mend.
            GaveUpError: the workers were lost too often in a row without a new checkpoint.
        """
        newest = newest_step(self._folder)
        try:
            while True:
                self._wait_for_room()
                self._enter("training")
                logs = self._next_logs()
                before = self._newest_attempt()
                try:
                    result = self._unless_stopped(logs)
                    if result.pop(HANDS_OVER, False):
                        self._history.clear()
                        self._waits_for = ""
                        self._enter("restarting", "asked to save, to go on with other nodes")
                        continue
                    self._enter("stopped" if result.get("stopped") else "finished")
                    return result
                except AttemptFailedError as error:
                    ended = error
                if self._may_try_again(ended):
                    continue
                failure = self._failure(ended, logs, before)
                reached = newest_step(self._folder)
                if reached > newest:
                    self._history.clear()
                newest = reached
                self._after(failure, logs, ended)
        except _StopAskedError:
            self._enter("stopped")
            step = newest_step(self._folder)
            return {"step": step, "stopped": True, "started_at_step": step, "skipped": {}, WITHOUT_WORKERS: True}

    def _may_try_again(self, ended: AttemptFailedError) -> bool:
        """Whether the workers have not even started, for the cluster does not know yet what it has lost."""
        self._num_starts = self._num_starts + 1 if ended.is_for_start else 0
        if ended.is_for_room:
            self._wait_because("there was no room for them on the cluster after all")
        elif 0 < self._num_starts <= _MOST_STARTS:
            self._wait_because("some died before all had started")
            self._sleep(_START_PAUSE_S)
        else:
            return False
        return True

    def _after(self, failure: Failure, logs: Path, error: AttemptFailedError) -> None:
        """Says what becomes of it; returns when it is time to start again."""
        what = failure.what if failure.tells_step else f"{failure.what} at step {last_step(self._folder)}"
        self._history.append(what)
        self._waits_for = ""
        number, most = len(self._history), self._resources.max_failures
        if not failure.is_worth_a_restart or number > most:
            self._enter("failed", what)
            self._record(failure, what)
        if not failure.is_worth_a_restart:
            raise WorkersFailedError(failure.errors, str(logs), self._advice(failure, error))
        if number > most:
            raise GaveUpError(failure.errors, str(logs), self._history, self._advice(failure, error))
        if self._stop_asked():
            line = f"{what}: stopping at the last checkpoint"
            self._say(f"fault: {line}")
            self._record(failure, line)
            raise _StopAskedError
        pause = _PAUSES_S[min(number, len(_PAUSES_S)) - 1]
        step = newest_step(self._folder)
        origin = f"from step {step}" if step else "from the beginning"
        later = f" in {pause:.0f} s" if pause else ""
        line = f"{what}: starting again {origin}{later} (failure {number} of {most})"
        self._say(f"fault: {line}")
        self._record(failure, line)
        self._enter("restarting", what)
        self._sleep(pause)

    def _failure(self, error: AttemptFailedError, logs: Path, before: int) -> Failure:
        notes = [note for path in self._notes_after(before) if (note := _read_note(path)) is not None]
        kills = {socket.gethostname(): count_memory_kills()}
        return classify(error.errors, read_places(logs), notes, memory_kills=kills)

    def _advice(self, failure: Failure, error: AttemptFailedError) -> list[str]:
        if failure.kind != "out_of_memory" and not failure.is_for_memory:
            return []
        on_device = failure.kind == "out_of_memory" and any(is_on_device(unwrapped(e)) for e in error.errors.values())
        return memory_advice(self._task.settings, on_device=on_device)

    def _record(self, failure: Failure, message: str) -> None:
        """One JSON object a line; beside what was printed, for machines and for later."""
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "attempt": self._newest_attempt(),
            "kind": failure.kind,
            "message": message,
            "errors": dict(failure.errors),
        }
        with suppress(OSError), (self._folder / FAULTS_FILE).open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _wait_for_room(self) -> None:
        while (lacks := self._lacking()) is not None:
            self._wait_because(lacks)
            self._sleep(1.0)

    def _wait_because(self, lacks: str) -> None:
        if lacks != self._waits_for:
            self._waits_for = lacks
            number = fewest_workers(self._resources)
            self._say(f"waiting for {number} worker{'s' if number > 1 else ''}: {lacks}")
            self._enter("waiting", lacks)

    def _sleep(self, seconds: float) -> None:
        """Raises _StopAskedError as soon as a stop is asked for."""
        until = time.monotonic() + seconds
        while True:
            if self._stop_asked():
                raise _StopAskedError
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _LOOK_EVERY_S))

    def _unless_stopped(self, logs: Path) -> Result:
        """The attempt's result; it is left alone if a stop is asked for before any worker has begun."""
        done: list[Result | BaseException] = []

        def run() -> None:
            try:
                done.append(self._attempt(logs))
            except BaseException as error:
                done.append(error)

        thread = Thread(target=run, name="attempt", daemon=True)
        thread.start()
        while thread.is_alive():
            if self._stop_asked() and not read_places(logs):
                raise _StopAskedError
            thread.join(_LOOK_EVERY_S)
        (end,) = done
        if isinstance(end, BaseException):
            raise end
        return end

    def _stop_asked(self) -> bool:
        return self._task.kind == "train" and self._task.stop_file.exists()

    def _next_logs(self) -> Path:
        """A new folder: Ray must not find an older run under the same name, for ours is the state that resumes."""
        return self._logs / f"attempt-{len(list(self._logs.glob('attempt-*'))):03d}"

    def _newest_attempt(self) -> int:
        return last_attempt(self._task.attempts)[0]

    def _notes_after(self, number: int) -> list[Path]:
        """Of this start of the workers. Those of an earlier one may write theirs only now, from a node that is back."""
        if self._task.kind != "train":  # others may train the run whose checkpoint this is
            return []
        return [path for path in self._task.attempts.glob("*.rank_*.json") if int(path.name.partition(".")[0]) > number]

    def _enter(self, name: Name, reason: str = "") -> None:
        if self._task.kind == "train":
            write_state(self._folder, name, reason=reason)


def _read_note(path: Path) -> Note | None:
    try:
        said = json.loads(path.read_text())
        return Note(int(said["rank"]), str(said["kind"]), str(said["message"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
