"""A tracker that writes everything down locally at once and lets a thread deliver it."""

from __future__ import annotations

import logging
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dmlscale.redaction import shown
from dmlscale.tracking.sender import Deliver, Sender
from dmlscale.tracking.spool import Fields, Spool
from dmlscale.tracking.system import SystemSampler
from dmlscale.tracking.tracker import Status

logger = logging.getLogger(__name__)

_NOT_IN_NAMES = re.compile(r"[^\w\-./: ]")


class SpooledTracker:
    """A `Tracker` over a spool: owns it, its sender and the sampler of system metrics. `finish` it.

    Records in the spool have a `kind`:
        metrics: `metrics` (name -> value), `step` (None: seconds since the run began, for system metrics),
            `time_ms`. The time is fixed here, so that a record sent twice is the same point twice.
        artifact: `file` (relative to the spool's folder; a copy: it may change later), `folder`.
        params, tags: `values`.
        status: `status`, `reason`, `time_ms`.

    Args:
        deliver: sends records.
        spool: what was left in it by an earlier process is sent first.
        run_id: of the run that the records belong to.
        url: where to look at the run.
        system_interval_s: seconds between system metrics; None for none.
        node: part of their names where several machines report (`system/<node>/...`).
        drain_timeout_s: how long `finish` waits for the receiver.
    """

    def __init__(
        self,
        deliver: Deliver,
        spool: Spool,
        *,
        run_id: str,
        url: str = "",
        system_interval_s: float | None = 5.0,
        node: str = "",
        drain_timeout_s: float = 30.0,
    ) -> None:
        self.run_id = run_id
        self.url = url
        self._spool = spool
        self._files = self._spool.path.with_name(self._spool.path.name + ".files")
        self._drain_timeout_s = drain_timeout_s
        self._left: int | None = None
        self._sender = Sender(self._spool, deliver)
        self._system_prefix = f"system/{node}/" if node else "system/"
        self._sampler = (
            None if system_interval_s is None else SystemSampler(self._log_system, interval_s=system_interval_s)
        )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._write({"kind": "params", "values": {clean_name(name): str(v) for name, v in params.items()}})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._write_metrics(metrics, int(step))

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """See `Tracker`."""
        copy = self._new_file(path.name)
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
        self._write_file(copy, folder)

    def log_figure(self, figure: Figure, name: str) -> None:
        """See `Tracker`."""
        folder, _, file_name = name.rpartition("/")
        copy = self._new_file(file_name)
        figure.savefig(copy, facecolor=figure.get_facecolor())
        self._write_file(copy, folder)

    def log_text(self, text: str, name: str) -> None:
        """See `Tracker`."""
        folder, _, file_name = name.rpartition("/")
        copy = self._new_file(file_name)
        copy.write_text(text, encoding="utf-8")
        self._write_file(copy, folder)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._write({"kind": "tags", "values": {clean_name(name): str(v) for name, v in tags.items()}})

    def finish(self, status: Status = "FINISHED", reason: str = "") -> int:
        """See `Tracker`."""
        if self._left is not None:
            return self._left
        if self._sampler is not None:
            self._sampler.stop()
        self._write({"kind": "status", "status": status, "reason": shown(reason), "time_ms": _now_ms()})
        self._left = self._sender.drain(self._drain_timeout_s)
        has_ended = self._sender.stop()
        self._spool.close()
        if self._left:
            logger.warning(
                "tracking: %d records could not be sent within %.0f s; they are kept in %s",
                self._left, self._drain_timeout_s, self._spool.path,
            )  # fmt: skip
        elif has_ended:
            shutil.rmtree(self._files, ignore_errors=True)
        return self._left

    def _log_system(self, metrics: Mapping[str, float]) -> None:
        self._write_metrics({self._system_prefix + name: value for name, value in metrics.items()}, None)

    def _write_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        values = {clean_name(name): float(value) for name, value in metrics.items()}
        self._write({"kind": "metrics", "metrics": values, "step": step, "time_ms": _now_ms()})

    def _write_file(self, file: Path, folder: str) -> None:
        relative = str(file.relative_to(self._spool.path.parent))
        self._write({"kind": "artifact", "file": relative, "folder": folder})

    def _write(self, fields: Fields) -> None:
        try:
            self._spool.append([fields])
        except (OSError, ValueError) as error:  # a full disk, or a tracker already closed
            logger.warning("tracking: a record of kind %s is lost: %s", fields["kind"], error)

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
