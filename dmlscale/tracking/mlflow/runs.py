"""Making and continuing runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlflow.entities import Dataset, DatasetInput, InputTag, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.rest_utils import http_request

from dmlscale.redaction import shown
from dmlscale.tracking.mlflow.fields import log_params, run_tags
from dmlscale.tracking.provenance import user_name
from dmlscale.tracking.run_file import KnownRun, note_run
from dmlscale.tracking.sender import first_line
from dmlscale.tracking.spooled import clean_name
from dmlscale.tracking.store import artifact_folder, is_server, sqlite_path

logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # or it tells of every new database

RUN_KEY = "dmlscale.run_key"
"""Tag by which a restarted or resumed training finds its run again."""
_LONGEST_DIGEST = 36
_HEALTH_TIMEOUT_S = 5.0
_DENIED = (401, 403)
# What the client makes of a broken connection, and of the pages of a gateway or of a server that is no MLflow.
_AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "BAD_REQUEST", "ENDPOINT_NOT_FOUND")


class TrackingUnreachableError(RuntimeError):
    """The store of runs cannot be used; the message names it."""

    def __init__(self, uri: str, reason: str, *, advice: str = "") -> None:
        super().__init__(
            f"cannot reach the tracking store {shown(uri)}: {shown(reason)}. Start the server, or choose another store "
            f"by the config or MLFLOW_TRACKING_URI (unset: a local SQLite file){advice}"
        )
        self.uri, self.reason = uri, reason


class TrackingDeniedError(RuntimeError):
    """The store of runs answers, but not to this user."""

    def __init__(self, uri: str, status: int) -> None:
        super().__init__(
            f"the tracking store {shown(uri)} refuses access (status {status}): set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, on every machine that the run has workers on"
        )


class DatasetNote(NamedTuple):
    """What a run says about its data."""

    name: str
    digest: str  # changes when the data change; cut to MLflow's 36 characters
    source: str  # where it lies
    description: Mapping[str, Any]  # counts, splits, ...: whatever JSON takes
    context: str = "train"


def start_or_continue(
    uri: str,
    experiment: str,
    run_name: str,
    *,
    key: str,
    tags: Mapping[str, Any] | None = None,
    params: Mapping[str, Any] | None = None,
    description: str = "",
    datasets: Sequence[DatasetNote] = (),
    time_ms: int | None = None,
) -> str:
    """The run with this key: continued if there is one, else made. For the driver, before the workers start.

    Args:
        uri: the store, as from `resolve_uri`.
        experiment: name; made if absent.
        run_name: of a new run; a continued one keeps its name.
        key: what a resumed training shares with its first start, such as the path of its output folder.
        tags: set again on a continued run (the commit may have changed).
        params: settings by dotted name; a continued run keeps the values it has.
        description: Markdown, on top of the run's page.
        datasets: what it is trained and evaluated on.
        time_ms: when a new run began; None for now.

    Returns:
        The id of the run, which is now RUNNING.

    Raises:
        TrackingUnreachableError: no answer (within seconds), or a database that cannot be written.
        TrackingDeniedError: no right to write there.
        ValueError: the experiment has been deleted.
    """
    require_reachable(uri)
    client = MlflowClient(uri)
    try:
        experiment_id = _experiment(client, uri, experiment)
        all_tags = {"mlflow.user": user_name(), **(tags or {}), RUN_KEY: key}
        if description:
            all_tags["mlflow.note.content"] = description
        run = _find_run(client, experiment_id, key)
        if run is None:
            run = client.create_run(experiment_id, start_time=time_ms, run_name=run_name)
            # Its key at once: a kill between here and the rest must not leave a run that is not found again.
            client.set_tag(run.info.run_id, RUN_KEY, key)
        else:
            client.update_run(run.info.run_id, status="RUNNING")
            if "dmlscale.reason" in run.data.tags:  # why it ended the last time
                client.delete_tag(run.info.run_id, "dmlscale.reason")
        run_id = str(run.info.run_id)
        client.log_batch(run_id, tags=run_tags(all_tags))
        log_params(client, run, {clean_name(name): str(value) for name, value in (params or {}).items()})
        _log_datasets(client, run, datasets)
    except MlflowException as error:
        if error.error_code in _AWAY:
            raise TrackingUnreachableError(uri, first_line(error)) from error
        if is_server(uri) and error.get_http_status_code() in _DENIED:
            raise TrackingDeniedError(uri, error.get_http_status_code()) from None
        raise
    return run_id


def start_recorded(
    uri: str, run_folder: Path, start: Mapping[str, Any], *, parents: Mapping[str, str] | None = None
) -> str:
    """`start_or_continue` from a record of kind "start"; the folder of the run then tells which run it is.

    Args:
        uri: the store.
        run_folder: of the run.
        start: the record's fields.
        parents: id of a parent run in another store -> its id in this one.

    Returns:
        The id of the run.
    """
    values = {name: value for name, value in start.items() if name not in ("kind", "store")}
    tags = dict(values["tags"])
    parent = tags.get(MLFLOW_PARENT_RUN_ID)
    if parent is not None:
        tags[MLFLOW_PARENT_RUN_ID] = (parents or {}).get(parent, parent)
    datasets = [DatasetNote(*note) for note in values["datasets"]]
    run_id = start_or_continue(uri, **{**values, "tags": tags, "datasets": datasets})
    note_run(run_folder, KnownRun(uri, run_id))
    return run_id


def _log_datasets(client: MlflowClient, run: Run, datasets: Sequence[DatasetNote]) -> None:
    known = {(entry.dataset.name, entry.dataset.digest) for entry in run.inputs.dataset_inputs}
    inputs = [
        DatasetInput(
            Dataset(
                name=note.name,
                digest=note.digest[:_LONGEST_DIGEST],
                source_type="local",
                source=json.dumps({"uri": note.source}),
                profile=json.dumps(note.description, default=str),
            ),
            [InputTag("mlflow.data.context", note.context)],
        )
        for note in datasets
        if (note.name, note.digest[:_LONGEST_DIGEST]) not in known
    ]
    if not inputs:
        return
    try:
        client.log_inputs(run.info.run_id, inputs)
    except Exception as error:  # the database's own, or what the client makes of it
        if "IntegrityError" not in f"{type(error).__name__} {error}":
            raise
        client.log_inputs(
            run.info.run_id, inputs
        )  # another trial brought the same dataset at this moment: now it is there


def _find_run(client: MlflowClient, experiment_id: str, key: str) -> Run | None:
    if "'" in key or '"' in key:
        raise ValueError(f"run key {key!r} must not contain quotes")
    found = client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
    return found[0] if found else None


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        folder = artifact_folder(uri)
        try:
            return str(client.create_experiment(name, artifact_location=folder.as_uri() if folder else None))
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)  # another driver was faster
            if experiment is None:
                raise error
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(
            f"tracking experiment {name!r} has been deleted in {shown(uri)}: restore it or name another one"
        )
    return str(experiment.experiment_id)


def require_reachable(uri: str) -> None:
    """Find out within seconds; the client itself would try again for minutes."""
    if is_server(uri):
        try:
            answer = http_request(
                get_default_host_creds(uri), "/health", "GET",
                max_retries=0, timeout=_HEALTH_TIMEOUT_S, raise_on_status=False,
            )  # fmt: skip
        except Exception as error:
            raise TrackingUnreachableError(uri, first_line(error)) from error
        if answer.status_code in _DENIED:
            raise TrackingDeniedError(uri, answer.status_code)
    path = sqlite_path(uri)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            first_bytes = file.read(15)
    except OSError as error:
        raise TrackingUnreachableError(uri, str(error)) from error
    if first_bytes not in (b"", b"SQLite format 3"):  # MLflow would try again for minutes
        raise TrackingUnreachableError(uri, f"{path} is not a SQLite database")
