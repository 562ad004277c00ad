"""Spooled records -> one MLflow run, once each."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from dmlscale.redaction import shown
from dmlscale.tracking.mlflow.fields import log_params, run_tags, set_status
from dmlscale.tracking.mlflow.runs import start_recorded
from dmlscale.tracking.run_file import known_run
from dmlscale.tracking.sender import ReceiverLostAllError
from dmlscale.tracking.spool import Record
from dmlscale.tracking.spools import FOLDER, first_start, last_start

logger = logging.getLogger(__name__)

_METRICS_PER_CALL = 1000
_ATTEMPTS_PER_FILE = 3
_LARGEST_KEPT = 2**20  # bytes; smaller copies stay, so that the run can be recorded anew in another store
# The request is wrong in itself: sending it again would only hold up what comes after it.
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS")
_UNKNOWN = "RESOURCE_DOES_NOT_EXIST"


class Receiver:
    """Delivers spooled records to one run; records that come a second time change nothing.

    Points: only steps larger than the last one that the run has for that metric are sent. The run is asked
    for its last steps at the start and after every failure, since a call that failed may have arrived.

    A store that does not know the run any more, as one that lost its database, gets it from its beginning: the first
    start makes it again, and `ReceiverLostAllError` asks for all that was confirmed before.

    Args:
        uri: the store.
        run_folder: of the run; `tracking/run.json` in it names the run, once a record of kind "start" has made it.
        parents: id of a parent run in another store -> its id in this one.
    """

    def __init__(self, uri: str, run_folder: Path, *, parents: Mapping[str, str] | None = None) -> None:
        self._uri = uri
        self._run_folder = run_folder
        self._parents = parents or {}
        self._client: MlflowClient | None = None
        self._run: Run | None = None
        self._last_steps: dict[str, int] = {}
        self._failures: dict[int, int] = {}
        self._is_remade = False

    def open(self) -> None:
        """Look at the run, before there is something to deliver.

        Raises:
            ReceiverLostAllError: the store has lost it.
            LookupError: it has been deleted, or nobody knows what it is.
        """
        self._connect()

    def deliver(self, records: Sequence[Record]) -> None:
        """Send records in their order; raises if the store does not answer."""
        try:
            for kind, group in itertools.groupby(records, key=lambda record: record.fields["kind"]):
                if kind == "start":
                    self._run = None
                    *_, newest = group
                    self._start(newest.fields)
                    continue
                client, run = self._connect()
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
            known = known_run(self._run_folder)
            if known is None:
                raise LookupError(f"{self._run_folder} does not tell which run it is")
            try:
                run = self._get_active(self._client, known.run_id)
            except MlflowException as error:
                if error.error_code != _UNKNOWN or self._is_remade:  # once: two databases behind one address differ
                    raise
                self._is_remade = True
                self._start(first_start(self._run_folder))
                raise
            # The public dictionary of metrics leaves out their steps, and a metric's history may be long.
            self._last_steps = {metric.key: metric.step for metric in run.data._metric_objs}
            self._run = run
        return self._client, self._run

    def _start(self, fields: Mapping[str, Any]) -> None:
        before = known_run(self._run_folder)
        # A folder that was copied or moved since is one run, found by where it is now: else each of the starts in it
        # would take the run of the other.
        fields = {**fields, "key": last_start(self._run_folder)["key"]}
        run_id = start_recorded(self._uri, self._run_folder, fields, parents=self._parents)
        if before is not None and before != (self._uri, run_id):
            raise ReceiverLostAllError(
                f"{shown(self._uri)} does not know the run {before.run_id} any more; it is {run_id} now"
            )

    def _get_active(self, client: MlflowClient, run_id: str) -> Run:
        run = client.get_run(run_id)
        if run.info.lifecycle_stage == "deleted":
            raise LookupError(f"run {run_id}, or its experiment, has been deleted in {shown(self._uri)}: restore it")
        return run

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
            self._log_points(client, run.info.run_id, points[start : start + _METRICS_PER_CALL])

    def _log_points(self, client: MlflowClient, run_id: str, points: list[Metric]) -> None:
        try:
            client.log_batch(run_id, metrics=points)
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            self._get_active(client, run_id)  # a deleted run refuses all: they wait until it is restored
            if len(points) == 1:
                logger.warning("tracking: the point %s was refused: %s", points[0].key, shown(str(error)))
                return
            for half in (points[: len(points) // 2], points[len(points) // 2 :]):
                self._log_points(client, run_id, half)

    def _send_other(self, client: MlflowClient, run: Run, kind: str, record: Record) -> None:
        fields = record.fields
        try:
            if kind == "params":
                log_params(client, run, fields["values"])
            elif kind == "tags":
                client.log_batch(run.info.run_id, tags=run_tags(fields["values"]))
            elif kind == "status":
                set_status(client, run.info.run_id, fields["status"], fields["reason"], fields["time_ms"])
            elif kind == "artifact":
                self._send_file(client, run.info.run_id, record)
        except MlflowException as error:
            if error.error_code not in _REFUSED:
                raise
            self._get_active(client, run.info.run_id)
            logger.warning("tracking: a record of kind %s was refused: %s", kind, shown(str(error)))

    def _send_file(self, client: MlflowClient, run_id: str, record: Record) -> None:
        path, folder = self._run_folder / FOLDER / record.fields["file"], record.fields["folder"]
        if not path.exists():
            logger.warning("tracking: %s is gone and cannot be sent", path)
            return
        try:
            if path.is_dir():
                client.log_artifacts(run_id, str(path), f"{folder}/{path.name}".strip("/"))
            else:
                client.log_artifact(run_id, str(path), folder or None)
        except Exception as error:
            # Files may have a store of their own. If the runs can be reached and only the file fails again
            # and again, it must not hold up everything behind it.
            self._get_active(client, run_id)
            self._failures[record.number] = self._failures.get(record.number, 0) + 1
            if self._failures[record.number] < _ATTEMPTS_PER_FILE:
                raise
            logger.warning("tracking: gave up on sending %s: %s", path, shown(str(error)))
            return
        is_copy = path.parent.parent.name.endswith(".files")
        if is_copy and _size(path) > _LARGEST_KEPT:
            shutil.rmtree(path.parent, ignore_errors=True)


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else (path,)) if file.is_file())
