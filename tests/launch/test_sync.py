"""What runs recorded while their store was away is sent by a command."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from dmlscale.cli import main
from dmlscale.launch.run.lease import held, this_process
from dmlscale.launch.tracked import marked_failed_on_error
from dmlscale.tracking import sender
from dmlscale.tracking.mlflow import MlflowTracker, begin_run, end_run, start_or_continue, update_parent
from dmlscale.tracking.run_file import known_run
from tests.integration.runs import write_config


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: making its tables takes seconds, so they are made once."""
    path = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class _Store:
    """A SQLite store in a place that is away as long as a file is where its folder belongs."""

    def __init__(self, folder: Path, tables: Path) -> None:
        self.folder, self._tables = folder, tables
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        folder.touch()

    def come_back(self) -> None:
        self.folder.unlink()
        self.folder.mkdir()
        shutil.copy(self._tables, self.folder / "mlflow.db")

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)


@pytest.fixture
def store(tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch) -> _Store:
    monkeypatch.setattr(sender, "_HOPELESS_S", 0.5)
    return _Store(tmp_path / "store", tables)


def _record(store: _Store, folder: Path, steps: int, *, finished: bool = True, parent: str = "") -> None:
    tags = {"mlflow.parentRunId": parent} if parent else {}
    begin_run(store.uri, folder, "tests", folder.name, tags=tags, params={"p": 1}, if_unreachable="continue")
    tracker = MlflowTracker(store.uri, folder, system_interval_s=None, drain_timeout_s=0.1)
    for step in range(steps):
        tracker.log_metrics({"train/loss": 1 / (1 + step)}, step)
    tracker.log_text("a: 1\n", "config.yaml")
    tracker.finish() if finished else tracker.close(timeout_s=0.1)


def _run(folder: Path) -> tuple[str, str]:
    known = known_run(folder)
    assert known is not None
    return known


def test_all_runs_below_a_folder_are_sent_once(
    store: _Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    _record(store, runs / "a", 20)
    _record(store, runs / "b", 3, finished=False)
    assert main(["sync", str(runs)]) == 1
    assert re.search(r"runs/a: failed: 23 records are left: .*cannot reach", capsys.readouterr().out)
    store.come_back()
    assert main(["sync", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{runs}/a: 23 records sent, run {_run(runs / 'a')[1]} FINISHED ({store.uri})",
        f"{runs}/b: 6 records sent, run {_run(runs / 'b')[1]} KILLED ({store.uri})",
    ]
    history = store.client().get_metric_history(_run(runs / "a")[1], "train/loss")
    assert [(point.step, point.value) for point in history] == [(step, 1 / (1 + step)) for step in range(20)]
    for name, status in (("a", "FINISHED"), ("b", "KILLED")):
        run = store.client().get_run(_run(runs / name)[1])
        assert (run.info.status, run.info.run_name, run.data.params) == (status, name, {"p": "1"})
    assert main(["sync", str(runs / "a"), str(runs)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{runs}/a: nothing to send", f"{runs}/b: nothing to send"]


def test_a_run_goes_to_another_store_from_its_beginning_and_a_sweep_keeps_its_order(
    store: _Store, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.come_back()
    (tmp_path / "other").mkdir()
    shutil.copy(tables, tmp_path / "other" / "mlflow.db")
    sweep = tmp_path / "runs" / "sweep"
    _record(store, sweep, 1)
    _record(store, sweep / "trials" / "t0", 10, parent=_run(sweep)[1])
    before = [_run(sweep)[1], _run(sweep / "trials" / "t0")[1]]
    other = f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    assert main(["sync", str(sweep), "--uri", other]) == 0
    (uri, parent), (_, trial) = _run(sweep), _run(sweep / "trials" / "t0")
    assert uri == other
    assert not {parent, trial} & set(before)
    run = MlflowClient(other).get_run(trial)
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", parent)
    assert [point.step for point in MlflowClient(other).get_metric_history(trial, "train/loss")] == list(range(10))
    assert run.info.start_time == store.client().get_run(before[1]).info.start_time
    assert [file.path for file in MlflowClient(other).list_artifacts(trial)] == ["config.yaml"]
    capsys.readouterr()
    assert main(["sync", str(sweep)]) == 0  # it knows its new store
    assert capsys.readouterr().out.count("nothing to send") == 2


def test_a_store_that_is_named_by_mistake_changes_nothing_and_one_that_lost_the_run_is_asked(
    store: _Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.come_back()
    run = tmp_path / "run"
    _record(store, run, 3)
    assert main(["sync", str(run)]) == 0
    before, spools = _run(run), sorted((run / "tracking").iterdir())
    capsys.readouterr()
    assert main(["sync", str(run), "--uri", "http://127.0.0.1:9"]) == 1
    assert re.search("failed: 0 records are left: .*cannot reach|failed: .*Connection refused", capsys.readouterr().out)
    assert main(["sync", str(run)]) == 0
    assert "nothing to send" in capsys.readouterr().out
    assert (_run(run), sorted((run / "tracking").iterdir())) == (before, spools)
    with sqlite3.connect(store.folder / "mlflow.db") as database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"delete from {table}")
    assert main(["sync", str(run), "--uri", store.uri]) == 0
    assert "records sent" in capsys.readouterr().out
    assert _run(run) != before
    assert len(store.client().get_metric_history(_run(run)[1], "train/loss")) == 3


def test_a_run_at_work_is_left_alone(store: _Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _record(store, tmp_path / "run", 2, finished=False)
    store.come_back()
    with held(tmp_path / "run"):
        assert main(["sync", str(tmp_path / "run")]) == 1
        assert "is at work, and sends by itself" in capsys.readouterr().out
    assert main(["sync", str(tmp_path / "run")]) == 0


def test_a_run_of_before_finds_itself_by_its_folder(
    store: _Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store.come_back()
    run = tmp_path / "runs" / "small"
    run.mkdir(parents=True)
    write_config(run / "config.yaml", tmp_path, tmp_path, tracking={"uri": store.uri, "experiment": "tests"})
    run_id = start_or_continue(store.uri, "tests", "small", key=str(run))
    lines = [
        {"n": 1, "kind": "metrics", "metrics": {"loss": 0.5}, "step": 1, "time_ms": 1},
        {"n": 2, "kind": "status", "status": "FINISHED", "reason": "", "time_ms": 2},
    ]
    (run / "tracking.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["sync", str(run)]) == 0
    assert f"2 records sent, run {run_id} FINISHED" in capsys.readouterr().out
    assert store.client().get_run(run_id).data.metrics == {"loss": 0.5}


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", str(tmp_path / "nowhere")]) == 2
    assert main(["sync", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "nowhere is not there" in errors
    assert "holds no run that was recorded" in errors


def test_what_a_sweep_shows_waits_for_its_store(
    store: _Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, table = tmp_path / "sweep", tmp_path / "trials.csv"
    _record(store, sweep, 0, finished=False)
    table.write_text("trial,recall\n")
    shown = {"description": "**best**: t0", "tags": {"sweep.best_trial": "t0"}, "artifacts": {table: ""}}
    for recall in (0.5, 0.6):
        num_left = update_parent(store.uri, sweep, metrics={"best/recall": recall}, **shown)  # type: ignore[arg-type]  # values of several types
        time.sleep(1.1)  # their step is the number of seconds
    assert num_left >= 6
    assert end_run(store.uri, sweep, "FINISHED").problem
    store.come_back()
    assert main(["sync", str(sweep)]) == 0
    assert "FINISHED" in capsys.readouterr().out
    run = store.client().get_run(_run(sweep)[1])
    assert run.data.metrics == {"best/recall": 0.6}
    assert (run.data.tags["mlflow.note.content"], run.data.tags["sweep.best_trial"]) == ("**best**: t0", "t0")
    assert {file.path for file in store.client().list_artifacts(run.info.run_id)} == {"config.yaml", "trials.csv"}


def test_a_training_goes_on_without_its_store(
    store: _Store, glyphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file = write_config(tmp_path / "small.yaml", glyphs, tmp_path)
    train = ["train", str(config_file), "--local", f"tracking.uri={store.uri}"]
    assert main(train) == 2
    error = capsys.readouterr().err
    assert "cannot reach the tracking store" in error
    assert "tracking.if_unreachable=continue" in error
    assert main([*train, "tracking.if_unreachable=continue", "tracking.registered_model=small"]) == 0
    run, shown = tmp_path / "runs" / "small", capsys.readouterr().out
    assert shown.count("fault: tracking: the store") == 1
    assert f"first `dmlscale sync {run}`" in shown  # of the model, which is exported and not registered
    assert f"are not delivered yet: `dmlscale sync {run}` sends them" in shown
    store.come_back()
    assert main(["sync", str(run)]) == 0
    run_id = _run(run)[1]
    history = store.client().get_metric_history(run_id, "train/loss")
    assert [point.step for point in history] == list(range(1, 21))
    assert store.client().get_run(run_id).info.status == "FINISHED"
    assert main(["export", str(run), str(run / "model"), "--register", "small"]) == 0
    assert [model.run_id for model in store.client().search_model_versions("name = 'small'")] == [run_id]


@pytest.mark.parametrize("is_taken", [False, True])
def test_a_driver_that_gives_up_says_so_unless_another_has_taken_the_run(
    store: _Store, tmp_path: Path, is_taken: bool
) -> None:
    store.come_back()
    _record(store, tmp_path / "run", 1, finished=False)
    if is_taken:
        other = replace(this_process(), pid=1)
        (tmp_path / "run" / "driver.json").write_text(json.dumps(asdict(other)))
    with pytest.raises(OSError, match="lost"), marked_failed_on_error(store.uri, tmp_path / "run"):
        raise OSError("lost")
    run = store.client().get_run(_run(tmp_path / "run")[1])
    assert run.info.status == ("RUNNING" if is_taken else "FAILED")
    assert run.data.tags.get("dmlscale.reason") == (None if is_taken else "OSError: lost")
