"""Spooled records -> one MLflow run, once each."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from dmlscale.redaction import shown
from dmlscale.tracking.spool import Record
from dmlscale.tracking.spooled import clean_name

logger = logging.getLogger(__name__)

_LONGEST_PARAM, _LONGEST_TAG = 6000, 8000
_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100
_ATTEMPTS_PER_FILE = 3
# The request is wrong in itself: sending it again would only hold up what comes after it.
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS")


class Receiver:
    """Delivers spooled records to one run; records that come a second time change nothing.

    Points: only steps larger than the last one that the run has for that metric are sent. The run is asked
    for its last steps at the start and after every failure, since a call that failed may have arrived.

    Args:
        uri: the store.
        run_id: of the run.
        folder: that the names of files are relative to.
        no_status_before: records up to this number do not end the run: an earlier process wrote them, and the
            run has been continued since.
    """

    def __init__(self, uri: str, run_id: str, folder: Path, *, no_status_before: int = 0) -> None:
        self._no_status_before = no_status_before
        self._uri = uri
        self._run_id = run_id
        self._folder = folder
        self._client: MlflowClient | None = None
        self._run: Run | None = None
        self._last_steps: dict[str, int] = {}
        self._failures: dict[int, int] = {}

    def deliver(self, records: Sequence[Record]) -> None:
        """Send records in their order; raises if the store does not answer."""
        try:
            client, run = self._connect()
            for kind, group in itertools.groupby(records, key=lambda record: record.fields["kind"]):
                if kind == "metrics":
                    self._send_metrics(client, run, [record.fields for record in group])
                    continue
                for record in group:
                    self._send_other(client, run, kind, record)
        except Exception:
            self._run = None
            raise

    def _connect(self) -> tuple[MlflowClient, Run]:
        # In the sender's thread, not in __init__: a store that is down must not hold up the training's start.
        if self._client is None:
            self._client = MlflowClient(self._uri)
        if self._run is None:
            self._run = self._client.get_run(self._run_id)
            # The public dictionary of metrics leaves out their steps, and a metric's history may be long.
            self._last_steps = {metric.key: metric.step for metric in self._run.data._metric_objs}
        return self._client, self._run

    def _send_metrics(self, client: MlflowClient, run: Run, records: Sequence[Mapping[str, Any]]) -> None:
        points: list[Metric] = []
        for fields in records:
            time_ms, step = fields["time_ms"], fields["step"]
            if step is None:
                step = max(0, time_ms - run.info.start_time) // 1000
            for name, value in fields["metrics"].items():
                if step > self._last_steps.get(name, -1):
                    self._last_steps[name] = step
                    points.append(Metric(name, value, time_ms, step))
        for start in range(0, len(points), _METRICS_PER_CALL):
            self._log_points(client, points[start : start + _METRICS_PER_CALL])

    def _log_points(self, client: MlflowClient, points: list[Metric]) -> None:
        try:
            client.log_batch(self._run_id, metrics=points)
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            if len(points) == 1:
                logger.warning("tracking: the point %s was refused: %s", points[0].key, shown(str(error)))
                return
            for half in (points[: len(points) // 2], points[len(points) // 2 :]):
                self._log_points(client, half)

    def _send_other(self, client: MlflowClient, run: Run, kind: str, record: Record) -> None:
        fields = record.fields
        try:
            if kind == "params":
                log_params(client, run, fields["values"])
            elif kind == "tags":
                client.log_batch(self._run_id, tags=run_tags(fields["values"]))
            elif kind == "status" and record.number > self._no_status_before:
                set_status(client, self._run_id, fields["status"], fields["reason"], fields["time_ms"])
            elif kind == "artifact":
                self._send_file(client, record)
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            logger.warning("tracking: a record of kind %s was refused: %s", kind, shown(str(error)))

    def _send_file(self, client: MlflowClient, record: Record) -> None:
        path, folder = self._folder / record.fields["file"], record.fields["folder"]
        if not path.exists():
            logger.warning("tracking: %s is gone and cannot be sent", path)
            return
        try:
            if path.is_dir():
                client.log_artifacts(self._run_id, str(path), f"{folder}/{path.name}".strip("/"))
            else:
                client.log_artifact(self._run_id, str(path), folder or None)
        except Exception as error:
            # Files may have a store of their own. If the runs can be reached and only the file fails again
            # and again, it must not hold up everything behind it.
            client.get_run(self._run_id)
            self._failures[record.number] = self._failures.get(record.number, 0) + 1
            if self._failures[record.number] < _ATTEMPTS_PER_FILE:
                raise
            logger.warning("tracking: gave up on sending %s: %s", path, shown(str(error)))
            return
        shutil.rmtree(path.parent, ignore_errors=True)


def log_params(client: MlflowClient, run: Run, params: Mapping[str, str]) -> None:
    """Log those that the run does not have yet: MLflow refuses another value for a parameter."""
    known = run.data.params
    cut = {name: _cut(value, _LONGEST_PARAM) for name, value in params.items()}
    changed = sorted(name for name, value in cut.items() if known.get(name, value) != value)
    if changed:
        logger.warning("tracking: the run keeps its first value of %s", ", ".join(changed))
    new = [Param(name, value) for name, value in cut.items() if name not in known]
    for start in range(0, len(new), _PARAMS_PER_CALL):
        client.log_batch(run.info.run_id, params=new[start : start + _PARAMS_PER_CALL])
    known.update({param.key: param.value for param in new})


def run_tags(tags: Mapping[str, Any]) -> list[RunTag]:
    """Tags with names and values that MLflow takes."""
    return [RunTag(clean_name(name), _cut(str(value), _LONGEST_TAG)) for name, value in tags.items()]


def set_status(client: MlflowClient, run_id: str, status: str, reason: str = "", time_ms: int | None = None) -> None:
    """End a run, with the reason as a tag."""
    if reason:
        client.log_batch(run_id, tags=run_tags({"dmlscale.reason": shown(reason)}))
    client.set_terminated(run_id, status, end_time=time_ms)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
