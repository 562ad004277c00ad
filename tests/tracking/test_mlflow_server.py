"""Against a real server that freezes, dies and comes back."""

import time
import uuid
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dmlscale.tracking.mlflow import MlflowTracker, TrackingUnreachableError, replay_spool, start_or_continue
from tests.tracking.conftest import MlflowServer


def _start(server: MlflowServer, folder: Path) -> tuple[str, MlflowTracker]:
    run_id = start_or_continue(server.uri, "outage", "run", key=uuid.uuid4().hex)
    return run_id, MlflowTracker(server.uri, run_id, folder / "spool.jsonl", system_interval_s=None)


def _log(tracker: MlflowTracker, steps: range) -> float:
    """Logs a point per step over half a second or more; the longest time a call took."""
    longest = 0.0
    for step in steps:
        start = time.perf_counter()
        tracker.log_metrics({"train/loss": 1.0 / (1 + step), "train/lr": step}, step)
        longest = max(longest, time.perf_counter() - start)
        time.sleep(0.01)
    return longest


def _assert_complete(server: MlflowServer, run_id: str, num_steps: int) -> None:
    client = MlflowClient(server.uri)
    for name in ("train/loss", "train/lr"):
        assert [point.step for point in client.get_metric_history(run_id, name)] == list(range(num_steps))


def test_frozen_server_delays_nothing_and_loses_nothing(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    run_id, tracker = _start(mlflow_server, tmp_path)
    longest = _log(tracker, range(0, 100))
    mlflow_server.freeze()
    try:
        longest = max(longest, _log(tracker, range(100, 400)))
        with pytest.raises(TrackingUnreachableError):
            start_or_continue(mlflow_server.uri, "outage", "another", key="k")
    finally:
        mlflow_server.thaw()
    longest = max(longest, _log(tracker, range(400, 450)))
    assert tracker.finish() == 0
    assert longest < 0.05
    _assert_complete(mlflow_server, run_id, 450)


def test_killed_server_gets_everything_after_its_restart(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run_id, tracker = _start(mlflow_server, tmp_path)
    longest = _log(tracker, range(0, 60))
    mlflow_server.kill()
    longest = max(longest, _log(tracker, range(60, 160)))
    tracker._drain_timeout_s = 0.5
    start = time.monotonic()
    num_left = tracker.finish("KILLED", "preempted")
    assert time.monotonic() - start < 5
    assert num_left > 100
    mlflow_server.start()
    assert replay_spool(mlflow_server.uri, run_id, tmp_path / "spool.jsonl") == 0
    assert longest < 0.05
    _assert_complete(mlflow_server, run_id, 160)
    run = MlflowClient(mlflow_server.uri).get_run(run_id)
    assert (run.info.status, run.data.tags["dmlscale.reason"]) == ("KILLED", "preempted")


def test_files_go_through_the_server(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run_id, tracker = _start(mlflow_server, tmp_path)
    tracker.log_text("lr: 0.1\n", "config/resolved.yaml")
    assert tracker.finish() == 0
    client = MlflowClient(mlflow_server.uri)
    assert Path(client.download_artifacts(run_id, "config/resolved.yaml")).read_text() == "lr: 0.1\n"
    assert tracker.url == f"{mlflow_server.uri}/#/runs/{run_id}"
