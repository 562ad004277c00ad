"""Where runs are kept, and how to look at them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from dmlscale.redaction import secret_in_url, shown

# Without it a visitor's first page is the one for language models, where experiments look empty.
_FOR_TRAINING = {"workflowType": "machine_learning"}


class StoreError(ValueError):
    """An address of a store that cannot be used; the message says what to write."""


def resolve_uri(explicit: str | None = None, *, folder: Path | None = None) -> str:
    """The store to use: the one asked for, else MLFLOW_TRACKING_URI, else a local SQLite file.

    Args:
        explicit: from the config or the command line; a relative SQLite path is made absolute.
        folder: of the local file; the working directory if not given.

    Returns:
        A URI that means the same in every process: Ray workers run in folders of their own, where a relative
        path would make a new, empty database.

    Raises:
        StoreError: a store that MLflow no longer writes to (a folder of files), or an address with a password, which
            would be kept with every run, checkpoint and message.
    """
    uri = explicit or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not uri:
        return f"sqlite:///{(folder or Path.cwd()).absolute() / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme
    if secret_in_url(uri):
        named = "tracking.uri" if explicit else "MLFLOW_TRACKING_URI"
        raise StoreError(f"{named} {shown(uri)} holds a password: {sign_in(uri)}, and leave it out of the address")
    if scheme in ("", "file"):
        raise StoreError(
            f"tracking uri {shown(uri)!r} is a folder; MLflow keeps runs in a database: "
            "write sqlite:////absolute/path/mlflow.db, or the http address of a server"
        )
    path = sqlite_path(uri)
    return uri if path is None else f"sqlite:///{path}"


def sign_in(uri: str) -> str:
    """Where a password belongs that is not in the address."""
    if is_server(uri):
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if uri.startswith("postgresql"):
        return "set PGPASSWORD or write ~/.pgpass, or run an MLflow server before the database"
    return "run an MLflow server before the database and name that"


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of a SQLite store's file; None for any other store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).absolute()


def artifact_folder(uri: str) -> Path | None:
    """Where a SQLite store keeps its files: beside the database. None where the server decides."""
    path = sqlite_path(uri)
    return None if path is None else path.parent / f"{path.stem}_artifacts"


def is_server(uri: str) -> bool:
    """Whether the store is reached over the network."""
    return urlsplit(uri).scheme in ("http", "https")


def run_url(uri: str, run_id: str, *, port: int = 5000) -> str:
    """The page of a run: on its server, or on the local dashboard once `dashboard_command` runs."""
    return f"{dashboard_address(uri, port=port)}/#/runs/{run_id}"


def run_path(experiment_id: str, run_id: str) -> str:
    """The page of a run, from the dashboard's address on: `#/experiments/...`."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{urlencode(_FOR_TRAINING)}"


def model_path(name: str) -> str:
    """The page of a registered model, from the dashboard's address on."""
    return f"#/models/{quote(name, safe='')}?{urlencode(_FOR_TRAINING)}"


def compare_path(experiment_id: str, run_ids: Sequence[str]) -> str:
    """The page that compares runs, from the dashboard's address on: `#/compare-runs?...`."""
    values = {"runs": json.dumps(list(run_ids)), "experiments": json.dumps([experiment_id])}
    return f"#/compare-runs?{urlencode(values | _FOR_TRAINING, quote_via=quote)}"


def charts_path(experiment_id: str, tags: Mapping[str, str], metric: str, *, descending: bool) -> str:
    """The page with the curves of all runs that have these tags, from the dashboard's address on.

    Args:
        experiment_id: theirs.
        tags: name -> value.
        metric: that the runs are sorted by. Sorted by their time, children would be folded under their parent, and
            the charts draw what is in the list alone.
        descending: whether the largest value comes first.
    """
    values = {
        "searchFilter": " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items()),
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": "false" if descending else "true",
        "compareRunsMode": "CHART",
    }
    return f"#/experiments/{experiment_id}/runs?{urlencode(values | _FOR_TRAINING, quote_via=quote)}"


def dashboard_address(uri: str, *, port: int = 5000) -> str:
    """Where the dashboard answers: the server, or a local one once `dashboard_command` runs."""
    return uri.rstrip("/") if is_server(uri) else f"http://127.0.0.1:{port}"


def dashboard_command(uri: str, *, port: int = 5000) -> str:
    """The shell command that opens the dashboard of a local store; the address of a server."""
    if is_server(uri):
        return uri
    # Without its job runner the server starts in 6 s instead of 26 s.
    return (
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true "
        f"mlflow ui --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --port {port}"
    )
