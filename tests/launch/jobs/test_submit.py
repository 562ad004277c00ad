"""What `submit` and the commands on jobs do before there is a cluster, and with one that only answers."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlscale.cli import main
from dmlscale.config.load import check_config, load_config, override_values
from dmlscale.distributed.world import World
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs import entry, submit
from dmlscale.launch.jobs.command import Command, read_train
from dmlscale.tracking.store import StoreError
from dmlscale.training import checkpoint
from dmlscale.training.state import Record

QUICKSTART = "configs/quickstart.yaml"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # which the client sets
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _submit(folder: Path, *overrides: str, env: tuple[str, ...] = ()) -> int:
    shutil.copy(QUICKSTART, folder)
    order = submit.Order(address=NOBODY, shared="/mnt/s", env=env, working_dir=str(folder))
    return submit.submit(Command("train", (str(folder / "quickstart.yaml"),), overrides), order, read_train)


def test_what_env_says_of_the_store_counts_more_than_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////home/me/mlflow.db")
    with pytest.raises(LaunchError, match="file of this machine"):
        _submit(tmp_path)
    # Comes as far as asking the cluster.
    with pytest.raises(LaunchError, match="no Ray dashboard answers"):
        _submit(tmp_path, env=("MLFLOW_TRACKING_URI=http://mlflow:5000",))
    with pytest.raises(LaunchError, match="file of this machine"):
        _submit(tmp_path, env=("MLFLOW_TRACKING_URI=sqlite:////home/you/mlflow.db",))


def test_a_store_that_mlflow_does_not_write_to_is_refused_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="sqlite:////absolute/path"):
        _submit(tmp_path, "tracking.uri=file:///mnt/s/mlruns")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "/mnt/s/mlruns")
    with pytest.raises(StoreError, match="sqlite:////absolute/path"):
        _submit(tmp_path)


def test_a_store_of_the_nodes_is_refused_there(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "/var/mlruns")
    assert entry.main(["--folder", "/mnt/s/runs", "--tracked", "--", "train", "x.yaml"]) == 2
    said = capfd.readouterr().out
    assert "refused: tracking uri '/var/mlruns' is a folder" in said
    assert "ended with exit code 2" in said


def test_an_evaluation_runs_on_the_cluster_that_it_is_submitted_to(tmp_path: Path) -> None:
    config = load_config(QUICKSTART, ["resources.address=10.0.0.5:6379"]).model_dump(mode="json")
    record = Record(step=1, position={}, num_ranks=1, config=config, tracking={})
    folder = checkpoint.save(tmp_path / "runs/mine/checkpoints", {"a": torch.zeros(1)}, record, World(), keep=1)
    command, settings, _ = submit._prepared(Command("evaluate", (str(folder),)), None, read_train)
    assert settings is not None
    assert settings.config.resources.address == "auto"
    values = override_values(dict(config), command.overrides)  # as the job will
    assert check_config(values, "").resources.address == "auto"
    asked = Command("evaluate", (str(folder),), ("resources.address=10.0.0.6:6379",))
    with pytest.raises(LaunchError, match="leave the key out"):
        submit._prepared(asked, None, read_train)


def test_a_user_without_a_name_can_submit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)  # as in a container that runs under any number
    assert submit._metadata(Command("train", (QUICKSTART,)), "mine")["dmlscale.user"] == "unknown"


@pytest.fixture
def dashboard() -> Iterator[str]:
    """A web server on loopback with jobs of others."""
    jobs = [
        {"type": "SUBMISSION", "submission_id": "mine", "status": "FAILED", "entrypoint": "ls [/tmp] [red]"},
        {"type": "SUBMISSION", "submission_id": "big", "status": "FAILED", "entrypoint": "x", "driver_exit_code": -9},
    ]
    answers: dict[str, Any] = {"/api/version": {"version": "4", "ray_version": "2.60.0"}, "/api/jobs/": jobs}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_jobs_of_others_are_listed_as_they_are(dashboard: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "list", "--address", dashboard, "--traceback"]) == 0
    shown = capsys.readouterr().out
    assert "ls [/tmp] [red]" in shown
    assert "137" in shown


@pytest.mark.parametrize("words", [["jobs", "--traceback", "list"], ["jobs", "list", "--traceback"]])
def test_a_traceback_is_shown_wherever_it_is_asked_for(words: list[str]) -> None:
    with pytest.raises(LaunchError, match="no Ray dashboard"):
        main([*words, "--address", NOBODY])
