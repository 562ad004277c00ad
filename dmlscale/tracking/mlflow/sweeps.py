"""What a sweep tells MLflow: what its parent run shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from dmlscale.tracking.mlflow.recording import MlflowTracker

_WAIT_S = 10.0


def experiment_of(uri: str, run_id: str) -> str:
    """The id of a run's experiment."""
    return str(MlflowClient(uri).get_run(run_id).info.experiment_id)


def update_parent(
    uri: str,
    run_folder: Path,
    *,
    description: str,
    tags: Mapping[str, Any],
    metrics: Mapping[str, float],
    artifacts: Mapping[Path, str],
) -> int:
    """Renews what a sweep's run shows. Where the store is away, it is kept on disk.

    Args:
        uri: of the store.
        run_folder: of the sweep.
        description: Markdown, on top of its page.
        tags: set anew.
        metrics: the last value counts.
        artifacts: file -> folder among the run's artifacts.

    Returns:
        The number of records that are kept for later.
    """
    tracker = MlflowTracker(uri, run_folder, system_interval_s=None)
    tracker.set_tags({"mlflow.note.content": description, **tags})
    tracker.log_now(metrics)
    for path, folder in artifacts.items():
        tracker.log_artifact(path, folder)
    return tracker.close(timeout_s=_WAIT_S)
