"""What a sweep tells MLflow: how its children ended, and what its parent shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from dmlscale.tracking.mlflow.receiver import run_tags
from dmlscale.tracking.mlflow.runs import end_run, replay_spool
from dmlscale.tracking.tracker import Status

SPOOL_FILE = "tracking.jsonl"


def close_child(uri: str, run_id: str, folder: Path, status: Status, reason: str) -> None:
    """Ends the run of a training whose processes are gone, after sending what they had recorded."""
    if (folder / SPOOL_FILE).exists():
        replay_spool(uri, run_id, folder / SPOOL_FILE)
    end_run(uri, run_id, status, reason)


def experiment_of(uri: str, run_id: str) -> str:
    """The id of a run's experiment."""
    return str(MlflowClient(uri).get_run(run_id).info.experiment_id)


def update_parent(
    uri: str,
    run_id: str,
    *,
    description: str,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    artifacts: Mapping[Path, str],
) -> None:
    """Renews what a sweep's run shows.

    Args:
        uri: of the store.
        run_id: of the parent.
        description: Markdown, on top of its page.
        tags: set anew.
        metrics: the last value counts.
        artifacts: file -> folder among the run's artifacts.
    """
    client = MlflowClient(uri)
    client.log_batch(run_id, tags=run_tags({"mlflow.note.content": description, **tags}))
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    for path, folder in artifacts.items():
        client.log_artifact(run_id, str(path), folder or None)
