"""Starting the workers again: how often, from where, and what is said of it.

Ray's own retries count all errors alike and say nothing, so each start of the workers is one of Ray's runs without any.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.errors import GaveUpError, WorkersFailedError
from dmlscale.launch.recovery.asked_nodes import ask_memory_kills
from dmlscale.launch.recovery.attempt import last_attempt
from dmlscale.launch.recovery.elastic import fewest_workers
from dmlscale.launch.recovery.failures import Failure, Note, classify, hosts_of_killed, unwrapped
from dmlscale.launch.recovery.out_of_memory import is_on_device, memory_advice
from dmlscale.launch.recovery.roster import read_places
from dmlscale.launch.recovery.watch_notes import EarlyNotice, read_notes
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
        answers: whether the node at an address can be reached from here. Without it nothing is told of a fault before
            the attempt has ended.
    """

    def __init__(
        self,
        task: Task,
        resources: ResourcesConfig,
        attempt: Callable[[Path], Result],
        lacking: Callable[[], str | None],
        say: Callable[[str], None] = tell,
        answers: Callable[[str], bool] = lambda _address: False,
    ) -> None:
        self._task, self._resources, self._attempt, self._lacking, self._say = task, resources, attempt, lacking, say
        self._answers = answers
        self._folder = Path(task.folder)
        self._logs = self._folder / "ray"
        self._history: list[str] = []
        self._waits_for = ""
        self._num_starts = 0
        self._newest = newest_step(self._folder)
        self._told_early: Failure | None = None

    def run(self) -> Result:
        """The task's result, after as many starts as it takes.

        Raises:
            WorkersFailedError: with an error that a new start cannot mend.
            GaveUpError: the workers were lost too often in a row without a new checkpoint.
        """
        try:
            while True:
                self._wait_for_room()
                self._enter("training")
                logs = self._next_logs()
                before, self._told_early = self._newest_attempt(), None
                try:
                    result = self._unless_stopped(logs, EarlyNotice(self._task.attempts, before, logs, self._answers))
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
                self._after(self._failure(ended, logs, before), logs, ended)
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
            why = "; ".join(str(error).partition("\n")[0] for error in ended.errors.values())
            self._wait_because(f"some died before all had started ({why})")
            self._sleep(_START_PAUSE_S)
        else:
            return False
        return True

    def _tell_early(self, note: Note) -> None:
        """Says what is known while Ray is still about to find out, unless this is the end of the run."""
        self._count_anew_if_saved()
        number = len(self._history) + 1
        if number > self._resources.max_failures or self._stop_asked():
            return
        self._told_early = failure = Failure("lost", note.message, {note.rank: note.message}, tells_step=True)
        self._tell_restart(failure, note.message, number)

    def _tell_restart(self, failure: Failure, what: str, number: int) -> None:
        pause, step = _pause_s(number), newest_step(self._folder)
        origin = f"from step {step}" if step else "from the beginning"
        later = f" in {pause:.0f} s" if pause else ""
        line = f"{what}: starting again {origin}{later} (failure {number} of {self._resources.max_failures})"
        self._say(f"fault: {line}")
        self._record(failure, line)

    def _count_anew_if_saved(self) -> None:
        reached = newest_step(self._folder)
        if reached > self._newest:
            self._history.clear()
        self._newest = reached

    def _after(self, failure: Failure, logs: Path, error: AttemptFailedError) -> None:
        """Says what becomes of it, if that is not told yet; returns when it is time to start again."""
        self._count_anew_if_saved()
        early, self._told_early = self._told_early, None
        if early is not None and failure.is_worth_a_restart:
            failure = early
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
            if early is None:
                line = f"{what}: stopping at the last checkpoint"
                self._say(f"fault: {line}")
                self._record(failure, line)
            raise _StopAskedError
        if early is None:
            self._tell_restart(failure, what, number)
        self._enter("restarting", what)
        self._sleep(_pause_s(number))

    def _failure(self, error: AttemptFailedError, logs: Path, before: int) -> Failure:
        # Others may train the run whose checkpoint is evaluated: what they note is none of this task's business.
        notes = read_notes(self._task.attempts, before) if self._task.kind == "train" else []
        places = read_places(logs)
        failure = classify(error.errors, places, notes)
        if failure.kind != "lost" or failure.tells_step:
            return failure
        kills = ask_memory_kills(hosts_of_killed(error.errors, places))
        return classify(error.errors, places, notes, memory_kills=kills)

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

    def _unless_stopped(self, logs: Path, notice: EarlyNotice) -> Result:
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
            if self._task.kind == "train" and self._told_early is None and (note := notice.look()) is not None:
                self._tell_early(note)
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

    def _enter(self, name: Name, reason: str = "") -> None:
        if self._task.kind == "train":
            write_state(self._folder, name, reason=reason)


def _pause_s(number: int) -> float:
    """Before the new start after so many failures in a row."""
    return _PAUSES_S[min(number, len(_PAUSES_S)) - 1]
