"""MLflow as each node sees it: rank 0, which sends what there is to log, may be on any of them."""

from __future__ import annotations

import base64
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.machines import Machines
from dmlscale.launch.doctor.shared_folder import WAIT_SECONDS, check_shared_folder
from dmlscale.redaction import shown
from dmlscale.tracking.store import is_server, sqlite_path

CHECK = "mlflow"
_ANSWER_SECONDS = 5.0
_SLOW_SECONDS = 1.0
_REFUSED = (401, 403)


def check_tracking(machines: Machines, uri: str, *, wait_seconds: float = WAIT_SECONDS) -> list[Finding]:
    """Whether each machine reaches the store.

    Args:
        machines: that may log.
        uri: of a server, or of a SQLite file, which then must lie on shared storage.
        wait_seconds: for a file that another machine wrote there.
    """
    if is_server(uri):
        asked = {machine.name: (uri, _ANSWER_SECONDS) for machine in machines.all}
        answers = machines.ask(reach_server, asked, seconds=4 * _ANSWER_SECONDS)
        return [*answers.findings(CHECK), *judge_server(uri, answers.values)]
    path = sqlite_path(uri)
    if path is not None:
        return check_shared_folder(machines, CHECK, str(path.parent), wait_seconds=wait_seconds)
    what = f"{urlsplit(uri).scheme} store: not checked"
    return [Finding("", CHECK, "warn", what, "an http(s) server is what workers on many nodes should log to")]


def reach_server(uri: str, seconds: float) -> dict[str, Any]:
    """On a node: asks the server for an experiment, as a worker there would.

    Its health page would not do: it is open to everybody, while the rest may need a password or refuse the host name.

    Returns:
        status: of HTTP; 0 without an answer. seconds: it took. error: why there was none, or what the answer says.
    """
    parts = urlsplit(uri)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/experiments/search?max_results=1")
    user = parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user and password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    elif token:
        request.add_header("Authorization", f"Bearer {token}")
    context = None
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true" and uri.startswith("https"):
        context = ssl._create_unverified_context()
    started = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=seconds, context=context) as answer:
            answer.read()
            status, error = answer.status, ""
    except urllib.error.HTTPError as refusal:
        status, error = refusal.code, refusal.read(200).decode(errors="replace").strip()
    except (OSError, ValueError) as failure:
        status, error = 0, str(getattr(failure, "reason", None) or failure)
    return {"status": status, "seconds": time.monotonic() - started, "error": error}


def judge_server(uri: str, answers: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Findings from what `reach_server` says of each node."""
    return [_judge(uri, node, answer) for node, answer in answers.items()]


def _judge(uri: str, node: str, answer: Mapping[str, Any]) -> Finding:
    where = shown(uri)
    if answer["status"] == 0:
        advice = (
            "start the server with --host set to an address that the nodes reach, and open its port; "
            "or name another (tracking.uri)"
        )
        return Finding(node, CHECK, "fail", f"{where} cannot be reached: {answer['error']}", advice)
    if answer["status"] in _REFUSED:
        advice = (
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) on the node; if it "
            "speaks of the host header, start the server with --allowed-hosts"
        )
        return Finding(node, CHECK, "fail", f"{where} refuses ({answer['status']}): {answer['error']}", advice)
    if answer["status"] != 200:
        what = f"{where} answers {answer['status']}: {answer['error']}"
        return Finding(node, CHECK, "fail", what, "see the server's log; is it MLflow that answers there?")
    if answer["seconds"] > _SLOW_SECONDS:
        what = f"{where} answers after {answer['seconds']:.1f} s"
        return Finding(node, CHECK, "warn", what, "runs spool what they log, but the last of it may come late")
    return Finding(node, CHECK, "ok", f"{where} answers")
