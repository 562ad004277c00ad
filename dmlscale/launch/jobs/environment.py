"""Environment variables that travel with a job. Everybody who can see the dashboard can read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from dmlscale.config.secrets import is_secret_name, secret_in_url, secrets_in_text
from dmlscale.launch.errors import LaunchError
from dmlscale.tracking.store import is_server, sqlite_path

_TRACKING = "MLFLOW_TRACKING_URI"
# After a stop Ray waits so long before it kills, 3 s by default: a run must be able to end its step and to save.
_STOP_SECONDS = 600
_ON_THE_NODES = (
    "set it in the environment of the nodes instead (a Kubernetes secret, /etc/environment before `ray start`), where "
    "jobs find it"
)


def chosen_variables(asked: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``--env NAME`` (as it is here) and ``--env NAME=VALUE``.

    Raises:
        LaunchError: one is not set here, or holds a secret, of which the value is not shown.
    """
    chosen = {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}
    for text in asked:
        name, equals, value = text.partition("=")
        if not name.isidentifier():
            raise LaunchError("--env: write NAME or NAME=VALUE, with a name of letters, digits and _")
        if not equals and name not in environment:
            raise LaunchError(f"--env {name}: is not set here; write --env {name}=VALUE")
        value = value if equals else environment[name]
        if is_secret_name(name) or secret_in_url(value) or secrets_in_text(value):
            raise LaunchError(
                f"--env {name}: looks like a secret, and whoever opens Ray's dashboard could read it: {_ON_THE_NODES}"
            )
        chosen[name] = value
    return chosen


def tracking_variable(in_config: str | None, environment: Mapping[str, str], shared: str | None) -> dict[str, str]:
    """MLFLOW_TRACKING_URI as it is here, for a job whose config names no store.

    Args:
        in_config: ``tracking.uri``.
        environment: of the caller.
        shared: folder that all nodes have, or None.

    Raises:
        LaunchError: it is a file of this machine, or holds a password.
    """
    uri = environment.get(_TRACKING)
    if in_config is not None or not uri:
        return {}
    if secret_in_url(uri):
        raise LaunchError(
            f"{_TRACKING} has a password in it, which everybody could read in Ray's dashboard: leave it out of the "
            f"address, and for MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD: {_ON_THE_NODES}"
        )
    path = sqlite_path(uri)
    if path is not None and (shared is None or not path.is_relative_to(Path(shared))):
        raise LaunchError(
            f"{_TRACKING}={uri} is a file of this machine, which the cluster does not have: unset it (runs then go to "
            "mlflow.db beside run.folder), name a file below --shared, or use an MLflow server"
        )
    return {_TRACKING: uri}


def check_server(uri: str | None, num_nodes: int) -> None:
    """Whether the MLflow server can be the same for all nodes.

    Raises:
        LaunchError: its address means another machine on each of them.
    """
    if uri is None or not is_server(uri) or num_nodes < 2:
        return
    host = urlsplit(uri).hostname or ""
    if host == "localhost" or host.startswith("127.") or host == "::1":
        raise LaunchError(
            f"the MLflow server {uri} is on a loopback address, which on each of the {num_nodes} nodes is the node "
            "itself: give the address that it has in the cluster's network (tracking.uri or MLFLOW_TRACKING_URI)"
        )
