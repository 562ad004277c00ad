import json
import logging
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from dmlscale.tracking.mlflow import (
    DatasetNote,
    MlflowTracker,
    TrackingUnreachableError,
    end_run,
    replay_spool,
    start_or_continue,
)
from dmlscale.tracking.spool import Spool


def _new_run(uri: str, **options: Any) -> str:
    return start_or_continue(uri, "tests", "run", key=uuid.uuid4().hex, **options)


def _tracker(uri: str, run_id: str, folder: Path, **options: Any) -> MlflowTracker:
    return MlflowTracker(uri, run_id, folder / "spool.jsonl", **{"system_interval_s": None, **options})


def _history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, name)]


def test_run_is_made_once_and_continued_by_its_key(sqlite_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    data = DatasetNote("glyphs", "d" * 50, "/data/glyphs", {"classes": 1070, "path": Path("/data")})
    first = start_or_continue(
        sqlite_uri, "tests", "first", key="out/1", tags={"loss": "triplet", "bad,name": "x" * 9000},
        params={"optim.lr": 1e-3, "text": "x" * 7000} | {f"p{i}": i for i in range(150)},
        description="# hello", datasets=[data],
    )  # fmt: skip
    end_run(sqlite_uri, first, "FAILED", "node lost")
    other = start_or_continue(sqlite_uri, "tests", "other", key="out/2")
    again = start_or_continue(
        sqlite_uri, "tests", "again", key="out/1", params={"optim.lr": 2e-3, "new": 1}, datasets=[data]
    )
    assert again == first != other
    run = MlflowClient(sqlite_uri).get_run(first)
    assert run.info.status == "RUNNING"
    assert run.info.run_name == "first"
    assert len(run.data.params) == 153
    assert run.data.params["optim.lr"] == "0.001"
    assert run.data.params["new"] == "1"
    assert run.data.params["text"] == "x" * 5997 + "..."
    assert "keeps its first value of optim.lr" in caplog.text
    assert run.data.tags["mlflow.note.content"] == "# hello"
    assert run.data.tags["loss"] == "triplet"
    assert len(run.data.tags["bad_name"]) == 8000
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("glyphs", "d" * 36)
    assert json.loads(entry.dataset.profile) == {"classes": 1070, "path": "/data"}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "train")]


def test_everything_logged_is_on_the_run(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri)
    tracker = _tracker(sqlite_uri, run_id, tmp_path, system_interval_s=0.1)
    for step in range(30):
        tracker.log_metrics({"train/loss": 1 / (step + 1), "train/what?": float(step)}, step)
    tracker.log_metrics({"train/loss": float("nan"), "eval/x": float("inf")}, 30)
    tracker.log_params({"seed": 0})
    tracker.set_tags({"checkpoint": "/c/1"})
    tracker.log_text("a: 1\n", "config.yaml")
    tracker.log_figure(Figure(), "gallery/step_1.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.txt").write_text("old")
    tracker.log_artifact(tmp_path / "folder", "kept")
    tracker.log_artifact(tmp_path / "folder" / "x.txt")
    (tmp_path / "folder" / "x.txt").write_text("changed later")
    time.sleep(0.3)
    assert tracker.finish() == 0
    assert tracker.finish() == 0
    tracker.log_metrics({"late": 1}, 99)  # closed: told, not raised

    client, run = MlflowClient(sqlite_uri), MlflowClient(sqlite_uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert _history(sqlite_uri, run_id, "train/loss")[:30] == [(step, 1 / (step + 1)) for step in range(30)]
    assert np.isnan(run.data.metrics["train/loss"])
    assert run.data.metrics["train/what_"] == 29
    assert run.data.params["seed"] == "0"
    assert run.data.tags["checkpoint"] == "/c/1"
    assert run.data.metrics["system/system_memory_usage_percentage"] > 0
    assert [file.path for file in client.list_artifacts(run_id, "gallery")] == ["gallery/step_1.png"]
    for name in ("x.txt", "kept/folder/x.txt"):
        assert Path(client.download_artifacts(run_id, name, str(tmp_path))).read_text() == "old"
    assert not (tmp_path / "spool.jsonl.files").exists()


def test_resumed_training_draws_no_zigzag_and_sends_what_a_crash_left(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri)
    crashed = _tracker(sqlite_uri, run_id, tmp_path)
    for step in range(1, 6):
        crashed.log_metrics({"loss": step}, step)
    crashed._sender.drain(10)
    crashed._sender.stop()  # the process is killed: these are written and never sent
    crashed.log_metrics({"loss": 6}, 6)
    crashed.log_metrics({"loss": 7}, 7)

    resumed = _tracker(sqlite_uri, run_id, tmp_path)
    for step in range(4, 10):  # from the checkpoint of step 3
        resumed.log_metrics({"loss": step}, step)
    assert resumed.finish() == 0
    assert _history(sqlite_uri, run_id, "loss") == [(step, step) for step in range(1, 10)]


def test_resume_on_another_machine_knows_the_last_steps_from_the_run(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri)
    for folder, steps in (("a", range(1, 6)), ("b", range(3, 9))):
        tracker = _tracker(sqlite_uri, run_id, tmp_path / folder)
        for step in steps:
            tracker.log_metrics({"loss": step}, step)
        assert tracker.finish() == 0
    assert _history(sqlite_uri, run_id, "loss") == [(step, step) for step in range(1, 9)]


def test_batch_that_arrived_without_an_answer_is_not_doubled(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri)
    tracker = _tracker(sqlite_uri, run_id, tmp_path)
    tracker.log_metrics({"a": 1.5, "b": 2.5}, 0)
    tracker.log_metrics({"a": 1.25}, 1)
    assert tracker.finish() == 0
    (tmp_path / "spool.jsonl.sent").unlink()
    assert replay_spool(sqlite_uri, run_id, tmp_path / "spool.jsonl") == 0
    assert _history(sqlite_uri, run_id, "a") == [(0, 1.5), (1, 1.25)]
    assert _history(sqlite_uri, run_id, "b") == [(0, 2.5)]


def test_status_of_an_earlier_process_does_not_end_a_continued_run(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri)
    time_ms = int(time.time() * 1000)
    Spool(tmp_path / "spool.jsonl").append(
        [{"kind": "status", "status": "KILLED", "reason": "SIGTERM", "time_ms": time_ms}]
    )
    tracker = _tracker(sqlite_uri, run_id, tmp_path)
    assert tracker._sender.drain(10) == 0
    assert MlflowClient(sqlite_uri).get_run(run_id).info.status == "RUNNING"
    tracker.finish("FAILED", "out of memory")
    run = MlflowClient(sqlite_uri).get_run(run_id)
    assert (run.info.status, run.data.tags["dmlscale.reason"]) == ("FAILED", "out of memory")


def test_one_refused_point_does_not_hold_up_the_others(
    sqlite_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = _new_run(sqlite_uri)
    tracker = _tracker(sqlite_uri, run_id, tmp_path)
    tracker.log_metrics({"good": 1, "/": 2, "also/good": 3}, 0)
    tracker.log_artifact(Path(__file__))
    next((tmp_path / "spool.jsonl.files").rglob("*.py")).unlink()
    assert tracker.finish() == 0
    assert MlflowClient(sqlite_uri).get_run(run_id).data.metrics == {"good": 1, "also/good": 3}
    assert "the point / was refused" in caplog.text
    assert "is gone and cannot be sent" in caplog.text


def test_a_file_that_cannot_be_stored_does_not_hold_up_the_others(
    sqlite_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()  # a file where a folder is needed
    MlflowClient(sqlite_uri).create_experiment("no files", artifact_location=f"file://{blocked}/x")
    run_id = start_or_continue(sqlite_uri, "no files", "run", key="k")
    tracker = _tracker(sqlite_uri, run_id, tmp_path)
    tracker.log_metrics({"before": 1}, 0)
    tracker.log_text("x", "x.txt")
    tracker.log_metrics({"after": 1}, 0)
    assert tracker.finish() == 0
    assert MlflowClient(sqlite_uri).get_run(run_id).data.metrics == {"before": 1, "after": 1}
    assert "gave up on sending" in caplog.text


def test_unusable_stores_are_clear_errors_at_once(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is not a database")
    (tmp_path / "file").touch()
    for uri in (
        "http://127.0.0.1:1", f"sqlite:///{tmp_path}/text.db", f"sqlite:///{tmp_path}/file/mlflow.db",
    ):  # fmt: skip
        start = time.monotonic()
        with pytest.raises(TrackingUnreachableError, match=uri):
            start_or_continue(uri, "tests", "run", key="k")
        assert time.monotonic() - start < 10


def test_deleted_experiment_is_a_clear_error(sqlite_uri: str) -> None:
    client = MlflowClient(sqlite_uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ValueError, match="'gone' has been deleted"):
        start_or_continue(sqlite_uri, "gone", "run", key="k")


def test_training_does_not_wait_for_logging(sqlite_uri: str, tmp_path: Path) -> None:
    tracker = _tracker(sqlite_uri, _new_run(sqlite_uri), tmp_path)
    times = []
    for step in range(500):
        start = time.perf_counter()
        tracker.log_metrics({f"train/m{i}": 0.5 for i in range(8)}, step)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 1e-3
    tracker.finish()


def test_logging_is_quiet(sqlite_uri: str) -> None:
    assert logging.getLogger("mlflow.store.db.utils").level == logging.WARNING
