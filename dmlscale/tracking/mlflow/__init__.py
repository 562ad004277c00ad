"""The only door to MLflow."""

from dmlscale.tracking.mlflow.model_note import ModelNote
from dmlscale.tracking.mlflow.recording import (
    Delivery,
    MlflowTracker,
    begin_run,
    end_run,
    is_delivered,
    last_status,
    recorded_store,
    send_rest,
)
from dmlscale.tracking.mlflow.registry import Registered, RegistryError, check_registrable, find_version, log_model
from dmlscale.tracking.mlflow.runs import (
    DatasetNote,
    TrackingDeniedError,
    TrackingUnreachableError,
    start_or_continue,
)
from dmlscale.tracking.mlflow.sweeps import experiment_of, update_parent

__all__ = [
    "DatasetNote",
    "Delivery",
    "MlflowTracker",
    "ModelNote",
    "Registered",
    "RegistryError",
    "TrackingDeniedError",
    "TrackingUnreachableError",
    "begin_run",
    "check_registrable",
    "end_run",
    "experiment_of",
    "find_version",
    "is_delivered",
    "last_status",
    "log_model",
    "recorded_store",
    "send_rest",
    "start_or_continue",
    "update_parent",
]
