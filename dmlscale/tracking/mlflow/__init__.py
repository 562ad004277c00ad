"""The only door to MLflow."""

from dmlscale.tracking.mlflow.model_note import ModelNote
from dmlscale.tracking.mlflow.registry import Registered, RegistryError, check_registrable, find_version, log_model
from dmlscale.tracking.mlflow.runs import (
    DatasetNote,
    MlflowTracker,
    TrackingDeniedError,
    TrackingUnreachableError,
    end_run,
    replay_spool,
    start_or_continue,
)
from dmlscale.tracking.mlflow.sweeps import close_child, experiment_of, update_parent

__all__ = [
    "DatasetNote",
    "MlflowTracker",
    "ModelNote",
    "Registered",
    "RegistryError",
    "TrackingDeniedError",
    "TrackingUnreachableError",
    "check_registrable",
    "close_child",
    "end_run",
    "experiment_of",
    "find_version",
    "log_model",
    "replay_spool",
    "start_or_continue",
    "update_parent",
]
