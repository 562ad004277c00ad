import json
import logging
import threading
import time
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
    begin_run,
    end_run,
    send_rest,
    start_or_continue,
)
from dmlscale.tracking.spools import forget_sent, num_undelivered, read_all
from tests.tracking.small_disk import SmallDisk


def _new_run(uri: str, folder: Path, experiment: str = "tests") -> str:
    return begin_run(uri, folder, experiment, "run", tags={}, params={})


def _tracker(uri: str, folder: Path, **options: Any) -> MlflowTracker:
    return MlflowTracker(uri, folder, **{"system_interval_s": None, **options})


def _history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, name)]


def test_run_is_made_once_and_continued_by_its_key(sqlite_uri: str, caplog: pytest.LogCaptureFixture) -> None:
    data = DatasetNote("glyphs", "d" * 50, "/data/glyphs", {"classes": 1070, "path": Path("/data")})
    first = start_or_continue(
        sqlite_uri, "tests", "first", key="out/1", tags={"loss": "triplet", "bad,name": "x" * 9000},
        params={"optim.lr": 1e-3, "text": "x" * 7000} | {f"p{i}": i for i in range(150)},
        description="# hello", datasets=[data],
    )  # fmt: skip
    MlflowClient(sqlite_uri).set_terminated(first, "FAILED")
    MlflowClient(sqlite_uri).set_tag(first, "dmlscale.reason", "node lost")
    other = start_or_continue(sqlite_uri, "tests", "other", key="out/2")
    again = start_or_continue(
        sqlite_uri, "tests", "again", key="out/1", params={"optim.lr": 2e-3, "new": 1}, datasets=[data]
    )
    assert again == first != other
    run = MlflowClient(sqlite_uri).get_run(first)
    assert run.info.status == "RUNNING"
    assert "dmlscale.reason" not in run.data.tags
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
    run_id = _new_run(sqlite_uri, tmp_path)
    tracker = _tracker(sqlite_uri, tmp_path, system_interval_s=0.1)
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
    assert tracker.run_id == run_id


def test_resumed_training_draws_no_zigzag_and_sends_what_a_crash_left(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri, tmp_path)
    crashed = _tracker(sqlite_uri, tmp_path)
    for step in range(1, 6):
        crashed.log_metrics({"loss": step}, step)
    assert crashed._sender.drain(60) == 0
    assert crashed._sender.stop(60)  # the process is killed: these are written and never sent
    crashed.log_metrics({"loss": 6}, 6)
    crashed.log_metrics({"loss": 7}, 7)

    resumed = _tracker(sqlite_uri, tmp_path)
    for step in range(4, 10):  # from the checkpoint of step 3
        resumed.log_metrics({"loss": step}, step)
    assert resumed.finish() == 0
    assert _history(sqlite_uri, run_id, "loss") == [(step, step) for step in range(1, 10)]


def test_an_orphan_that_lives_on_neither_sends_nor_counts(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = _new_run(sqlite_uri, tmp_path)
    orphan = _tracker(sqlite_uri, tmp_path, system_interval_s=0.05)
    look, may_look = orphan._spools.is_current, threading.Event()
    monkeypatch.setattr(orphan._spools, "is_current", lambda: may_look.wait(60) and look())  # it notices late
    for step in range(20):
        orphan.log_metrics({"loss": step}, step)
    successor = _tracker(sqlite_uri, tmp_path, system_interval_s=0.05)
    for step in range(20, 40):
        orphan.log_metrics({"loss": -1}, step)
        successor.log_metrics({"loss": step - 10}, step - 10)
        time.sleep(0.02)
    may_look.set()
    assert orphan.finish("FAILED", "an orphan") > 0
    assert successor.finish() == 0
    assert send_rest(sqlite_uri, tmp_path) == (0, 0, "")
    assert _history(sqlite_uri, run_id, "loss") == [(step, step) for step in range(30)]
    assert MlflowClient(sqlite_uri).get_run(run_id).info.status == "FINISHED"
    loads = [step for step, _ in _history(sqlite_uri, run_id, "system/disk_usage_percentage")]
    assert loads == sorted(set(loads))


def test_copies_of_large_files_go_once_they_are_sent(sqlite_uri: str, tmp_path: Path) -> None:
    _new_run(sqlite_uri, tmp_path)
    tracker = _tracker(sqlite_uri, tmp_path)
    tracker.log_text("x" * 2**21, "large.txt")
    tracker.log_text("x", "small.txt")
    assert tracker.finish() == 0
    assert [path.name for path in (tmp_path / "tracking").rglob("*.txt")] == ["small.txt"]


def test_batch_that_arrived_without_an_answer_is_not_doubled(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri, tmp_path)
    tracker = _tracker(sqlite_uri, tmp_path)
    tracker.log_metrics({"a": 1.5, "b": 2.5}, 0)
    tracker.log_metrics({"a": 1.25}, 1)
    assert tracker.finish() == 0
    forget_sent(tmp_path)
    delivery = send_rest(sqlite_uri, tmp_path)
    assert (delivery.sent, delivery.left, delivery.problem) == (4, 0, "")
    assert _history(sqlite_uri, run_id, "a") == [(0, 1.5), (1, 1.25)]
    assert _history(sqlite_uri, run_id, "b") == [(0, 2.5)]


def test_status_of_an_earlier_process_does_not_end_a_continued_run(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri, tmp_path)
    tracker = _tracker(sqlite_uri, tmp_path)
    assert tracker._sender.stop(60)  # killed before it could be sent
    assert tracker.finish("KILLED", "SIGTERM") == 1
    assert _new_run(sqlite_uri, tmp_path) == run_id
    continued = _tracker(sqlite_uri, tmp_path)
    assert continued._sender.drain(60) == 0
    assert MlflowClient(sqlite_uri).get_run(run_id).info.status == "RUNNING"
    continued.finish("FAILED", "out of memory")
    run = MlflowClient(sqlite_uri).get_run(run_id)
    assert (run.info.status, run.data.tags["dmlscale.reason"]) == ("FAILED", "out of memory")


def test_a_tracker_that_is_closed_leaves_the_run_as_it_is(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri, tmp_path)
    tracker = _tracker(sqlite_uri, tmp_path)
    tracker.log_metrics({"loss": 1}, 1)
    assert tracker.close(timeout_s=60) == 0
    assert MlflowClient(sqlite_uri).get_run(run_id).info.status == "RUNNING"
    delivery = end_run(sqlite_uri, tmp_path, "FAILED", "given up")
    assert (delivery.sent, delivery.left) == (1, 0)
    run = MlflowClient(sqlite_uri).get_run(run_id)
    assert (run.info.status, run.data.tags["dmlscale.reason"]) == ("FAILED", "given up")
    assert _history(sqlite_uri, run_id, "loss") == [(1, 1)]


def test_a_deleted_run_is_said_to_be_so(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = _new_run(sqlite_uri, tmp_path)
    MlflowClient(sqlite_uri).delete_run(run_id)
    assert "has been deleted" in end_run(sqlite_uri, tmp_path, "FAILED").problem


def test_one_refused_point_does_not_hold_up_the_others(
    sqlite_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = _new_run(sqlite_uri, tmp_path)
    tracker = _tracker(sqlite_uri, tmp_path)
    tracker.log_metrics({"good": 1, "/": 2, "also/good": 3}, 0)
    tracker.log_artifact(Path(__file__))
    next((tmp_path / "tracking").rglob("*.py")).unlink()
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
    run_id = _new_run(sqlite_uri, tmp_path, "no files")
    tracker = _tracker(sqlite_uri, tmp_path)
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
    _new_run(sqlite_uri, tmp_path)
    tracker = _tracker(sqlite_uri, tmp_path)
    times = []
    for step in range(500):
        start = time.perf_counter()
        tracker.log_metrics({f"train/m{i}": 0.5 for i in range(8)}, step)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 1e-3
    tracker.finish()


def test_logging_is_quiet(sqlite_uri: str) -> None:
    assert logging.getLogger("mlflow.store.db.utils").level == logging.WARNING


def test_a_full_disk_loses_nothing_while_the_store_is_there(sqlite_uri: str, tmp_path: Path) -> None:
    faults: list[str] = []
    messages: list[str] = []

    def say(*, fault: str = "", message: str = "") -> None:
        (faults if fault else messages).append(fault or message)

    with SmallDisk(tmp_path / "disk") as disk:
        run_folder = disk.folder / "run"
        run_id = _new_run(sqlite_uri, run_folder)
        (run_folder / "config.yaml").write_text("a: 1\n" * 1000)
        tracker = _tracker(sqlite_uri, run_folder, say=say)
        with disk.full():
            for step in range(500):
                tracker.log_metrics({"loss": step, "x" * 200: step}, step)
            tracker.log_artifact(run_folder / "config.yaml")
            tracker.log_text("lost" * 2000, "lost.txt")
            assert tracker._sender.drain(60) == 0
        tracker.log_metrics({"loss": 500}, 500)
        assert tracker.finish() == 0
        assert num_undelivered(run_folder) == 0
        assert sum(fields["kind"] == "metrics" for fields in read_all(run_folder)) == 501
    assert _history(sqlite_uri, run_id, "loss") == [(step, step) for step in range(501)]
    run = MlflowClient(sqlite_uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert [file.path for file in MlflowClient(sqlite_uri).list_artifacts(run_id)] == ["config.yaml"]
    assert ["waits in memory" in fault for fault in faults] == [True, False]
    assert "lost.txt is lost" in faults[1]
    assert messages == ["tracking: what waited in memory is on disk now"]
