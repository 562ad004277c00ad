"""Params, tags and the status of a run, in the form that MLflow takes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Param, Run, RunTag
from mlflow.tracking import MlflowClient

from dmlscale.redaction import shown
from dmlscale.tracking.spooled import clean_name

logger = logging.getLogger(__name__)

_LONGEST_PARAM, _LONGEST_TAG = 6000, 8000
_PARAMS_PER_CALL = 100


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
