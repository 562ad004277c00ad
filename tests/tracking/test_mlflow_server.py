"""Against a real server that freezes, dies and comes back."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dmlscale.tracking import sender
from dmlscale.tracking.mlflow import MlflowTracker, TrackingUnreachableError, begin_run, end_run, send_rest
from dmlscale.tracking.run_file import known_run
from dmlscale.tracking.spools import first_start, num_undelivered, read_all
from tests.tracking.conftest import MlflowServer

_REQUEST_S, _WAITS_S = 1, 0.05


def _until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class _Told:
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.messages: list[str] = []

    def __call__(self, *, fault: str = "", message: str = "") -> None:
        (self.faults if fault else self.messages).append(fault or message)


def _begin(server: MlflowServer, folder: Path, **options: object) -> str:
    return begin_run(server.uri, folder, "outage", "run", tags={"a": 1}, params={"p": 2}, **options)  # type: ignore[arg-type]  # any of its options


def _start(server: MlflowServer, folder: Path, told: _Told | None = None) -> tuple[str, MlflowTracker]:
    return _begin(server, folder), MlflowTracker(server.uri, folder, system_interval_s=None, say=told or _Told())


def _log(tracker: MlflowTracker, steps: range) -> list[float]:
    """Logs a point per step over half a second or more; the seconds of each call."""
    seconds = []
    for step in steps:
        start = time.perf_counter()
        tracker.log_metrics({"train/loss": 1.0 / (1 + step), "train/lr": step}, step)
        seconds.append(time.perf_counter() - start)
        time.sleep(0.01)
    return seconds


def _assert_nothing_waited(seconds: list[float]) -> None:
    assert max(seconds) < _WAITS_S


def _assert_complete(server: MlflowServer, run_id: str, num_steps: int) -> None:
    client = MlflowClient(server.uri)
    for name in ("train/loss", "train/lr"):
        assert [point.step for point in client.get_metric_history(run_id, name)] == list(range(num_steps))


@pytest.fixture
def running(mlflow_server: MlflowServer) -> Iterator[MlflowServer]:
    """The server, which runs again afterwards."""
    yield mlflow_server
    mlflow_server.kill()
    mlflow_server.start()


def test_frozen_server_delays_nothing_and_loses_nothing(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_REQUEST_S))
    monkeypatch.setattr(sender, "_HOPELESS_S", 60.0)
    told = _Told()
    run_id, tracker = _start(mlflow_server, tmp_path, told)
    seconds = _log(tracker, range(0, 100))
    mlflow_server.freeze()
    try:
        seconds += _log(tracker, range(100, 400))
        with pytest.raises(TrackingUnreachableError, match=r"tracking\.if_unreachable=continue"):
            _begin(mlflow_server, tmp_path / "another")
        _until(lambda: told.faults)
        tracker._drain_timeout_s = 1.0
        start = time.monotonic()
        assert tracker.finish("KILLED", "preempted") > 250
        assert time.monotonic() - start < 4
    finally:
        mlflow_server.thaw()
    _assert_nothing_waited(seconds)
    assert len(told.faults) == 2
    assert "the store cannot be reached" in told.faults[0]
    assert f"`dmlscale sync {tmp_path}` sends them later" in told.faults[1]
    assert send_rest(mlflow_server.uri, tmp_path).problem == ""
    _assert_complete(mlflow_server, run_id, 400)
    run = MlflowClient(mlflow_server.uri).get_run(run_id)
    assert (run.info.status, run.data.tags["dmlscale.reason"]) == ("KILLED", "preempted")


def test_server_killed_in_the_middle_and_started_again(
    running: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_HOPELESS_S", 60.0)  # the server is there again, if slow
    told = _Told()
    run_id, tracker = _start(running, tmp_path, told)
    seconds = _log(tracker, range(0, 60))
    running.kill()
    seconds += _log(tracker, range(60, 160))
    _until(lambda: told.faults)
    running.start()
    seconds += _log(tracker, range(160, 200))
    assert tracker.finish() == 0
    _assert_nothing_waited(seconds)
    _assert_complete(running, run_id, 200)
    assert MlflowClient(running.uri).get_run(run_id).info.status == "FINISHED"
    assert (len(told.faults), len(told.messages)) == (1, 1)


def test_server_down_from_the_start_to_the_end_of_a_run_with_a_restart(running: MlflowServer, tmp_path: Path) -> None:
    running.kill()
    told = _Told()
    start = time.monotonic()
    assert _begin(running, tmp_path, if_unreachable="continue", say=told, description="what it is") == ""
    assert time.monotonic() - start < 3  # the client itself would try again for minutes
    first = MlflowTracker(running.uri, tmp_path, system_interval_s=0.1)
    _log(first, range(0, 60))
    assert (first.run_id, first.url) == ("", "")
    first.log_text("lr: 0.1\n", "config/resolved.yaml")
    assert first.close() > 60
    second = MlflowTracker(running.uri, tmp_path, system_interval_s=None)
    _log(second, range(50, 100))  # from a checkpoint
    second._drain_timeout_s = 0.5
    assert second.finish() > 0
    assert end_run(running.uri, tmp_path / "other", "FAILED").problem  # a driver that gives up is not held up either
    running.start()
    delivery = send_rest(running.uri, tmp_path)
    assert (delivery.left, delivery.problem) == (0, "")
    known = known_run(tmp_path)
    assert known is not None
    _assert_complete(running, known.run_id, 100)
    run = MlflowClient(running.uri).get_run(known.run_id)
    assert (run.info.status, run.data.params, run.data.tags["a"]) == ("FINISHED", {"p": "2"}, "1")
    assert run.data.tags["mlflow.note.content"] == "what it is"
    system = MlflowClient(running.uri).get_metric_history(known.run_id, "system/disk_usage_percentage")
    assert [point.step for point in system] == sorted({point.step for point in system})
    # Seconds since the run began, not since the store was there.
    sampled_ms = next(fields["time_ms"] for fields in read_all(tmp_path) if fields.get("step", 0) is None)
    assert system[0].step == (sampled_ms - first_start(tmp_path)["time_ms"]) // 1000
    path = MlflowClient(running.uri).download_artifacts(known.run_id, "config/resolved.yaml", str(tmp_path))
    assert Path(path).read_text() == "lr: 0.1\n"
    assert len(told.faults) == 1
    assert num_undelivered(tmp_path) == 0


def test_files_go_through_the_server(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run_id, tracker = _start(mlflow_server, tmp_path)
    tracker.log_text("lr: 0.1\n", "config/resolved.yaml")
    assert tracker.finish() == 0
    client = MlflowClient(mlflow_server.uri)
    assert Path(client.download_artifacts(run_id, "config/resolved.yaml")).read_text() == "lr: 0.1\n"
    assert tracker.url == f"{mlflow_server.uri}/#/runs/{run_id}"
