"""A run that its store has no longer: deleted by someone, or lost with the database."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dmlscale.tracking import sender
from dmlscale.tracking.mlflow import MlflowTracker, begin_run, send_rest
from dmlscale.tracking.run_file import earlier_ids, known_run


def _history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, name)]


def test_what_a_deleted_run_refuses_waits_until_it_is_restored(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_HOPELESS_S", 0.5)
    run_id, client = begin_run(sqlite_uri, tmp_path, "tests", "run", tags={}, params={}), MlflowClient(sqlite_uri)
    tracker = MlflowTracker(sqlite_uri, tmp_path, system_interval_s=None, drain_timeout_s=1.0)
    tracker.log_metrics({"loss": 0}, 0)
    assert tracker._sender.drain(60) == 0
    client.delete_run(run_id)
    for step in range(1, 6):
        tracker.log_metrics({"loss": step}, step)
    assert tracker.finish() == 6
    assert "has been deleted" in send_rest(sqlite_uri, tmp_path).problem
    client.restore_run(run_id)
    assert send_rest(sqlite_uri, tmp_path) == (6, 0, "")
    assert _history(sqlite_uri, run_id, "loss") == [(step, step) for step in range(6)]
    assert client.get_run(run_id).info.status == "FINISHED"


def _lose(uri: str, run_id: str) -> None:
    """As a store that went back to a copy from before the run."""
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table} where run_uuid = ?", [run_id])


@pytest.mark.parametrize("when", ["training", "sync", "goes on"])
def test_a_store_that_lost_the_run_gets_it_from_its_beginning(
    sqlite_uri: str, tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_HOPELESS_S", 60.0)  # the run is made anew, which takes a busy machine seconds
    run_id = begin_run(sqlite_uri, tmp_path, "tests", "run", tags={}, params={"p": 1})
    tracker = MlflowTracker(sqlite_uri, tmp_path, system_interval_s=None, say=lambda **_: None)
    tracker.log_text("a: 1\n", "config.yaml")
    for step in range(10):
        tracker.log_metrics({"loss": step}, step)
    assert tracker._sender.drain(60) == 0
    if when == "training":
        _lose(sqlite_uri, run_id)
    for step in range(10, 20):
        tracker.log_metrics({"loss": step}, step)
    assert tracker.finish() == 0
    if when == "sync":  # all had arrived
        _lose(sqlite_uri, run_id)
        assert send_rest(sqlite_uri, tmp_path) == (23, 0, "")
    if when == "goes on":
        _lose(sqlite_uri, run_id)
        begin_run(sqlite_uri, tmp_path, "tests", "run", tags={}, params={"p": 1})
        tracker = MlflowTracker(sqlite_uri, tmp_path, system_interval_s=None)
        assert tracker.finish() == 0
    known = known_run(tmp_path)
    assert known is not None
    assert known.run_id != run_id
    assert earlier_ids(tmp_path) == [run_id]
    assert _history(sqlite_uri, known.run_id, "loss") == [(step, step) for step in range(20)]
    run = MlflowClient(sqlite_uri).get_run(known.run_id)
    assert (run.info.status, run.data.params) == ("FINISHED", {"p": "1"})
    assert [file.path for file in MlflowClient(sqlite_uri).list_artifacts(known.run_id)] == ["config.yaml"]


def test_a_copied_folder_is_a_run_of_its_own(sqlite_uri: str, tmp_path: Path) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    run_id = begin_run(sqlite_uri, first, "tests", "first", tags={}, params={})
    tracker = MlflowTracker(sqlite_uri, first, system_interval_s=None)
    for step in range(5):
        tracker.log_metrics({"loss": step}, step)
    assert tracker.finish() == 0
    shutil.copytree(first, copy)
    faults: list[str] = []
    begin_run(sqlite_uri, copy, "tests", "copy", tags={}, params={})
    tracker = MlflowTracker(
        sqlite_uri, copy, system_interval_s=None, say=lambda **entry: faults.append(entry.get("fault", ""))
    )
    for step in range(5, 8):
        tracker.log_metrics({"loss": step}, step)
    assert tracker.finish() == 0
    known = known_run(copy)
    assert known is not None
    assert known.run_id != run_id
    assert _history(sqlite_uri, known.run_id, "loss") == [(step, step) for step in range(8)]
    assert _history(sqlite_uri, run_id, "loss") == [(step, step) for step in range(5)]
    assert MlflowClient(sqlite_uri).get_run(run_id).info.status == "FINISHED"
    assert len(faults) < 3
