"""The only door to MLflow."""

from dmlscale.tracking.mlflow.runs import (
    DatasetNote,
    MlflowTracker,
    TrackingUnreachableError,
    end_run,
    replay_spool,
    start_or_continue,
)

__all__ = [
    "DatasetNote",
    "MlflowTracker",
    "TrackingUnreachableError",
    "end_run",
    "replay_spool",
    "start_or_continue",
]
