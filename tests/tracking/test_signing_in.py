"""Against a server behind a password: the client takes it from the environment, and we keep it nowhere."""

from __future__ import annotations

import base64
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow.tracking import MlflowClient

from dmlscale.tracking.mlflow import MlflowTracker, TrackingDeniedError, begin_run
from tests.tracking.conftest import MlflowServer

USER, PASSWORD = "me", "pl4nted-password"


class _Door(BaseHTTPRequestHandler):
    """Lets requests with the password through to ``server``."""

    behind: str
    is_open_for_health = False

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        is_free = self.is_open_for_health and self.path == "/health"
        if self.headers.get("Authorization") != wanted and not is_free:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        connection = http.client.HTTPConnection(self.behind, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name != "Host"}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Door, f"do_{_method}", _Door._pass_on)


@pytest.fixture(params=[False, True], ids=["all behind it", "health open"])
def door(request: pytest.FixtureRequest, mlflow_server: MlflowServer) -> Iterator[str]:
    handler = type(
        "Door", (_Door,), {"behind": urlsplit(mlflow_server.uri).netloc, "is_open_for_health": request.param}
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as door:
        threading.Thread(target=door.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{door.server_port}"
        door.shutdown()


def test_without_the_password_the_message_says_where_it_belongs(
    door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    with pytest.raises(TrackingDeniedError, match="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        begin_run(door, tmp_path, "signing in", "run", tags={}, params={}, if_unreachable="continue")


def test_with_the_password_all_is_recorded_and_it_is_kept_nowhere(
    door: str, mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    run_id = begin_run(door, tmp_path, "signing in", "run", tags={}, params={"a": 1})
    tracker = MlflowTracker(door, tmp_path, system_interval_s=0.05)
    tracker.log_metrics({"train/loss": 0.5}, 1)
    tracker.log_text("a text", "notes/a.txt")
    assert tracker.finish() == 0
    run = MlflowClient(mlflow_server.uri).get_run(run_id)
    assert run.data.metrics["train/loss"] == 0.5
    assert "system/cpu_utilization_percentage" in run.data.metrics
    assert Path(MlflowClient(door).download_artifacts(run_id, "notes/a.txt", str(tmp_path))).read_text() == "a text"
    assert [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()] == []
