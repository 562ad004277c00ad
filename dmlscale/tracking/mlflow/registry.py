"""Trained models in MLflow: logged with their run, and versions of registered models."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from dmlscale.redaction import shown
from dmlscale.tracking.mlflow.fields import run_tags
from dmlscale.tracking.mlflow.model_note import ModelNote, input_example, signature_of
from dmlscale.tracking.mlflow.runs import require_reachable
from dmlscale.tracking.store import is_server

logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)  # or it tells of each check
# or it tells, once the version is there, that it waits for it
logging.getLogger("mlflow.store.model_registry.abstract_store").setLevel(logging.WARNING)


class RegistryError(ValueError):
    """A model cannot be logged or registered as asked."""


class Registered(NamedTuple):
    """Where a model is now."""

    uri: str  # for mlflow.pyfunc.load_model
    version: str | None  # of the registered model


def check_registrable(uri: str, run_id: str, name: str) -> None:
    """Whether a model of a run can be registered, asked before any work; it changes nothing.

    Args:
        uri: the store, as from `resolve_uri`.
        run_id: the run that trained it.
        name: of the registered model, which may be there or not.

    Raises:
        TrackingUnreachableError: the store does not answer.
        RegistryError: it has no such run, or refuses the name.
    """
    require_reachable(uri)
    client = MlflowClient(uri, registry_uri=uri)
    try:
        client.get_run(run_id)
    except MlflowException as error:
        raise RegistryError(f"{shown(uri)}: {shown(error.message)}") from None
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise RegistryError(f"{shown(uri)}: {shown(error.message)}") from None


def find_version(uri: str, run_id: str, name: str, tags: Mapping[str, str]) -> Registered | None:
    """The newest version of a registered model that comes from a run and has these tags.

    Args:
        uri: the store, as from `resolve_uri`.
        run_id: the run.
        name: of the registered model, which may be there or not.
        tags: name -> value.
    """
    found = MlflowClient(uri, registry_uri=uri).search_model_versions(f"run_id='{run_id}'")
    numbers = [
        int(version.version)
        for version in found
        if version.name == name and version.status == "READY" and tags.items() <= version.tags.items()
    ]
    return Registered(f"models:/{name}/{max(numbers)}", str(max(numbers))) if numbers else None


def log_model(
    uri: str,
    run_id: str,
    folder: Path,
    note: ModelNote,
    *,
    code: Path,
    step: int,
    name: str = "embedder",
    registered_name: str | None = None,
) -> Registered:
    """Logs an exported folder as a pyfunc model of a run, and registers it if asked.

    The run may be over: its status stays, and no run becomes active. The model carries the evaluation metrics
    that the run has at this very step.

    Args:
        uri: the store, as from `resolve_uri`.
        run_id: the run that trained it.
        folder: exported; it becomes the artifact "model".
        note: what the model says about itself.
        code: a file that hands an `mlflow.pyfunc.PythonModel` to `mlflow.models.set_model`. It travels with the model
            in place of a pickle.
        step: of the checkpoint.
        name: of the logged model.
        registered_name: of the registered model, made if absent; None registers nothing.

    Raises:
        TrackingUnreachableError: the store does not answer.
        RegistryError: it has no such run, or refuses the registered model's name.
    """
    require_reachable(uri)
    client = MlflowClient(uri, registry_uri=uri)
    try:
        run = client.get_run(run_id)
        if registered_name is not None:
            _make_registered(client, registered_name)
    except MlflowException as error:
        raise RegistryError(f"{shown(uri)}: {shown(error.message)}") from None
    metrics = _metrics_at(client, run, step)
    tags = dict(note.tags)
    if note.main_metric in metrics:
        tags[note.main_metric.rpartition("/")[2]] = metrics[note.main_metric].value
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run_id,
        tags={tag.key: tag.value for tag in run_tags(tags)},
        params=run.data.params,
        model_type="embedder",
    )
    try:
        _upload(client, logged, run_id, folder, note, code)
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=step)])
        client.log_batch(run_id, metrics=[_of_model(metric, logged.model_id) for metric in metrics.values()])
    except BaseException:  # also Ctrl-C, or it would be PENDING for ever
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    if registered_name is None:
        return Registered(f"models:/{logged.model_id}", None)
    version = _add_version(client, uri, logged, run_id, registered_name, note, tags)
    return Registered(f"models:/{registered_name}/{version}", version)


def _upload(client: MlflowClient, logged: LoggedModel, run_id: str, folder: Path, note: ModelNote, code: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        path, copy = Path(made) / "made", Path(made) / "embedder"
        shutil.copytree(
            folder, copy
        )  # MLflow keeps the path that it is given, and reads some characters in it as a URI
        with _without_progress_bar():
            mlflow.pyfunc.save_model(
                path,
                python_model=str(code),
                artifacts={"model": str(copy)},
                signature=signature_of(note),
                input_example=input_example(note),
                pip_requirements=list(note.requirements),
                mlflow_model=Model(
                    logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id
                ),
            )
        client.log_model_artifacts(logged.model_id, str(path))


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """MLflow shows one for each copy of a file on this machine."""
    name = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _metrics_at(client: MlflowClient, run: Run, step: int) -> dict[str, Metric]:
    names = [name for name in run.data.metrics if name.startswith("eval/") and "/raw_pixels/" not in name]
    points = (point for name in names for point in client.get_metric_history(run.info.run_id, name))
    return {point.key: point for point in points if point.step == step and point.model_id is None}


def _of_model(metric: Metric, model_id: str) -> Metric:
    return Metric(metric.key, metric.value, metric.timestamp, metric.step, model_id=model_id, run_id=metric.run_id)


def _make_registered(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _add_version(
    client: MlflowClient,
    uri: str,
    logged: LoggedModel,
    run_id: str,
    name: str,
    note: ModelNote,
    tags: Mapping[str, Any],
) -> str:
    version = client.create_model_version(
        name,
        # A database finds a model's place by MLflow's global store, which may be another one; a server by itself.
        f"models:/{logged.model_id}" if is_server(uri) else logged.artifact_location,
        run_id=run_id,
        tags={tag.key: tag.value for tag in run_tags(tags)},
        description=note.description,
        model_id=logged.model_id,
    )
    entry = [{"name": version.name, "version": version.version}]
    client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": json.dumps(entry)})  # links the pages
    return str(version.version)
