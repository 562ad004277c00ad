"""A tracker that writes everything down locally at once and lets a thread deliver it."""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dmlscale.redaction import shown
from dmlscale.tracking.node_load import NodeLoads, named_system
from dmlscale.tracking.run_file import known_run
from dmlscale.tracking.sender import Deliver, Say, Sender, log_it
from dmlscale.tracking.spool import Fields
from dmlscale.tracking.spools import Spools
from dmlscale.tracking.store import run_url
from dmlscale.tracking.system import SystemSampler
from dmlscale.tracking.tracker import Status

logger = logging.getLogger(__name__)

_CLOSING_S = 2.0  # a run that goes on in another process does not wait: that one sends what is left
_NOT_IN_NAMES = re.compile(r"[^\w\-./: ]")


class SpooledTracker:
    """A `Tracker` over the spools of a run: owns them, their sender and the sampler of system metrics. `finish` it.

    Records in a spool have a `kind`:
        start: what the run is: the arguments of `start_or_continue`. Written by the driver.
        metrics: `metrics` (name -> value), `step` (None: seconds since the run began, for system metrics),
            `time_ms`. The time is fixed here, so that a record sent twice is the same point twice.
        artifact: `file` (relative to the spools' folder; a copy: it may change later), `folder`.
        params, tags: `values`.
        status: `status`, `reason`, `time_ms`.

    Args:
        deliver: sends records.
        spools: of the run, taken over; what earlier processes left in them is sent first.
        system_interval_s: seconds between system metrics; None for none.
        loads: of the other machines of the run, recorded with this one's; None where there are none.
        drain_timeout_s: how long `finish` waits for the receiver.
        say: who is told what goes wrong with tracking.
    """

    def __init__(
        self,
        deliver: Deliver,
        spools: Spools,
        *,
        system_interval_s: float | None = 5.0,
        loads: NodeLoads | None = None,
        drain_timeout_s: float = 30.0,
        say: Say = log_it,
    ) -> None:
        self._spools = spools
        self._files = spools.own.path.with_name(spools.own.path.name + ".files")
        self._drain_timeout_s = drain_timeout_s
        self._say = say
        self._loads = loads
        self._is_waiting = False
        self._left: int | None = None
        self._sender = Sender(spools, deliver, say=say)
        self._sampler = (
            None if system_interval_s is None else SystemSampler(self._log_system, interval_s=system_interval_s)
        )

    @property
    def run_id(self) -> str:
        """The run's id in its store; empty while it is not known."""
        known = known_run(self._spools.folder.parent)
        return known.run_id if known is not None else ""

    @property
    def url(self) -> str:
        """Where to look at the run; empty while that is not known."""
        known = known_run(self._spools.folder.parent)
        return run_url(*known) if known is not None else ""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._write({"kind": "params", "values": {clean_name(name): str(v) for name, v in params.items()}})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._write_metrics(metrics, int(step))

    def log_now(self, metrics: Mapping[str, float]) -> None:
        """Record numbers that belong to no step: at the number of seconds since the run began."""
        self._write_metrics(metrics, None)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """See `Tracker`."""
        try:
            copy = self._new_file(path.name)
            if path.is_dir():
                shutil.copytree(path, copy)
            else:
                shutil.copyfile(path, copy)
        except OSError as error:
            if not path.exists():
                raise
            logger.warning("tracking: %s cannot be copied (%s); it is sent as it is then", path, error)
            self._write({"kind": "artifact", "file": str(path.absolute()), "folder": folder})
            return
        self._write_file(copy, folder)

    def log_figure(self, figure: Figure, name: str) -> None:
        """See `Tracker`."""
        self._write_new(name, lambda copy: figure.savefig(copy, facecolor=figure.get_facecolor()))

    def log_text(self, text: str, name: str) -> None:
        """See `Tracker`."""
        self._write_new(name, lambda copy: copy.write_text(text, encoding="utf-8"))

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._write({"kind": "tags", "values": {clean_name(name): str(v) for name, v in tags.items()}})

    def finish(self, status: Status = "FINISHED", reason: str = "") -> int:
        """See `Tracker`."""
        if self._left is None:
            self._stop_sampling()
            self._write({"kind": "status", "status": status, "reason": shown(reason), "time_ms": _now_ms()})
            self._close(self._drain_timeout_s)
            if self._left and not self._sender.is_superseded:
                self._say(
                    fault=f"tracking: {self._left:,} records could not be sent yet: "
                    f"`dmlscale sync {self._spools.folder.parent}` sends them later"
                )
        return self._left or 0

    def close(self, *, timeout_s: float = _CLOSING_S) -> int:
        """See `Tracker`; ``timeout_s`` is how long it waits."""
        if self._left is None:
            self._stop_sampling()
            self._close(timeout_s)
        return self._left or 0

    def _stop_sampling(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()

    def _close(self, timeout_s: float) -> None:
        self._left = self._sender.drain(timeout_s)
        self._sender.stop()
        self._spools.close()
        lost = self._spools.own.num_waiting + self._spools.own.num_lost
        if lost:
            self._say(
                fault=f"tracking: the disk is still full: {lost:,} records are not on it ({self._spools.own.path})"
            )

    def _log_system(self, metrics: Mapping[str, float]) -> None:
        named = named_system(metrics) if self._loads is None else self._loads.named(metrics)
        self._write_metrics(named, None)

    def _write_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        values = {clean_name(name): float(value) for name, value in metrics.items()}
        self._write({"kind": "metrics", "metrics": values, "step": step, "time_ms": _now_ms()})

    def _write_new(self, name: str, write: Callable[[Path], object]) -> None:
        folder, _, file_name = name.rpartition("/")
        try:
            copy = self._new_file(file_name)
            write(copy)
        except OSError as error:
            self._say(fault=f"tracking: {name} is lost: {error}")
            return
        self._write_file(copy, folder)

    def _write_file(self, file: Path, folder: str) -> None:
        relative = str(file.relative_to(self._spools.folder))
        self._write({"kind": "artifact", "file": relative, "folder": folder})

    def _write(self, fields: Fields) -> None:
        if self._sender.is_superseded:  # this process is an orphan: another one records the run by now
            return
        try:
            self._spools.own.append([fields])
        except ValueError as error:  # a tracker already closed
            logger.warning("tracking: a record of kind %s is lost: %s", fields["kind"], error)
            return
        is_waiting = self._spools.own.num_waiting > 0
        if is_waiting and not self._is_waiting:
            self._say(fault=f"tracking: no space for {self._spools.own.path}: what is recorded waits in memory")
        if self._is_waiting and not is_waiting:
            lost = self._spools.own.num_lost
            self._say(message=f"tracking: what waited in memory is on disk now{f', but for {lost:,}' if lost else ''}")
        self._is_waiting = is_waiting

    def _new_file(self, name: str) -> Path:
        # A folder of its own, so that two files of one name do not meet.
        folder = self._files / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder / name


def clean_name(name: str) -> str:
    """A metric, parameter or tag name with only the characters that MLflow takes, at most 250."""
    return _NOT_IN_NAMES.sub("_", name)[:250]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
