"""What happens in a stage: shown at the terminal, noted in the trials' folders, and told to the tracker."""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console, RenderableType
from rich.live import Live

from dmlscale.tuning.early_stop import Plateau
from dmlscale.tuning.outcomes import Outcome
from dmlscale.tuning.trial import END_FILE, end_trial, read_json, read_outcome

_WATCHES: dict[str, StageWatch] = {}
_REST_S = 3.0  # that a stopped trial's processes have to be gone


class Told(Callback):
    """Tune's side: hands events to the watch of this process. Plain, since Tune keeps it in its state files."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See ``Callback``."""
        self._tell("started", trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """See ``Callback``."""
        self._tell("reported", trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See ``Callback``."""
        self._tell("completed", trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """See ``Callback``."""
        self._tell("failed", trial)

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """See ``Callback``."""
        if self._folder in _WATCHES:
            _WATCHES[self._folder].refresh()

    def _tell(self, event: str, trial: Trial, *details: Any) -> None:
        if self._folder in _WATCHES:
            getattr(_WATCHES[self._folder], event)(trial, *details)


class InterruptNote:
    """Notes Ctrl-C, for which Tune has a handler of its own while it runs."""

    def __init__(self) -> None:
        self.came = False
        self._before = signal.getsignal(signal.SIGINT)

    def stop(self) -> None:
        """Puts back what was in place before Tune's handler, which stays after Tune has ended."""
        signal.signal(signal.SIGINT, self._before)

    def listen(self) -> None:
        """From now on; to be called in the main thread, while Tune's handler is in place."""
        handler = signal.getsignal(signal.SIGINT)
        if handler != self._note:
            self._next = handler
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if callable(self._next):
            self._next(number, frame)


class StageWatch:
    """Used as a context while a stage runs.

    Args:
        folder: of the stage.
        name_of: a trial's name from its config and Tune's id.
        table: what to show of the trials so far.
        close: tells the tracker how a trial ended that could not do so itself.
        stop_reason: what to say of a stopped trial.
    """

    def __init__(
        self,
        folder: str,
        name_of: Callable[[dict[str, Any], str], str],
        table: Callable[[list[Outcome]], RenderableType],
        close: Callable[[Outcome], None],
        stop_reason: str,
    ) -> None:
        self._folder, self._name_of, self._table, self._close = folder, name_of, table, close
        self._stop_reason = stop_reason
        self._outcomes: dict[str, Outcome] = {}
        self._since: dict[str, float] = {}
        self._ended: queue.SimpleQueue[tuple[float, Outcome] | None] = queue.SimpleQueue()
        self._live = Live(console=Console(), auto_refresh=False, transient=True) if sys.stdout.isatty() else None
        self._closer = threading.Thread(target=self._close_ended, name="sweep-closer", daemon=True)
        self._shown_at = 0.0
        self._interrupt = InterruptNote()

    @property
    def was_interrupted(self) -> bool:
        """Whether someone asked the sweep to stop."""
        return self._interrupt.came

    def __enter__(self) -> StageWatch:
        _WATCHES[self._folder] = self
        self._closer.start()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del _WATCHES[self._folder]
        self._interrupt.stop()
        self._ended.put(None)
        self._closer.join()
        if self._live is not None:
            self._live.update(self._table(list(self._outcomes.values())), refresh=True)
            self._live.stop()

    def started(self, trial: Trial) -> None:
        """A trial's driver was started."""
        name = self._note(trial)
        self._since[name] = time.monotonic()
        self._say(name, "started" if not self._outcomes[name].curve else "goes on")

    def reported(self, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has been evaluated."""
        outcome = self._outcomes[self._note(trial)]
        shown = "  ".join(f"{key} {result[key]:.4g}" for key in list(outcome.metrics)[:3] if key in result)
        self._say(outcome.trial, f"step {result['step']}  {shown}")

    def completed(self, trial: Trial) -> None:
        """A trial has finished, or was stopped."""
        folder = self._folder_of(trial)
        if read_json(folder / END_FILE).get("status") not in ("finished", "stopped"):
            reason = "its metric did not move" if trial.trial_id in Plateau.stopped else self._stop_reason
            step = int((trial.last_result or {}).get("step", 0))
            end_trial(folder, "stopped", f"{reason}, at step {step}", self._seconds(folder.name))
        self._end(trial)

    def failed(self, trial: Trial) -> None:
        """A trial ended with an error."""
        folder = self._folder_of(trial)
        if read_json(folder / END_FILE).get("status") != "failed":  # its driver was killed, and could not say why
            end_trial(folder, "failed", "its driver on the head node died", self._seconds(folder.name))
        self._end(trial)

    def refresh(self) -> None:
        """Draws the table again, if it is time."""
        self._interrupt.listen()
        if self._live is not None and time.monotonic() - self._shown_at > 1.0:
            self._shown_at = time.monotonic()
            self._live.update(self._table(list(self._outcomes.values())), refresh=True)

    def _note(self, trial: Trial) -> str:
        folder = self._folder_of(trial)
        self._outcomes[folder.name] = read_outcome(folder)
        return folder.name

    def _end(self, trial: Trial) -> None:
        outcome = self._outcomes[self._note(trial)]
        if outcome.status != "finished":
            self._ended.put((time.monotonic() + _REST_S, outcome))
        self._say(outcome.trial, outcome.status + (f": {outcome.reason}" if outcome.reason else ""))

    def _close_ended(self) -> None:
        while (entry := self._ended.get()) is not None:
            due, outcome = entry
            time.sleep(max(0.0, due - time.monotonic()))
            with suppress(Exception):  # a tracker that is away; what a trial recorded stays in its folder
                self._close(outcome)

    def _folder_of(self, trial: Trial) -> Path:
        return Path(self._folder) / self._name_of(trial.config, trial.trial_id)

    def _seconds(self, name: str) -> float:
        return time.monotonic() - self._since.get(name, time.monotonic())

    def _say(self, name: str, text: str) -> None:
        if self._live is None:
            print(f"{name}  {text}", flush=True)
