import shlex
from pathlib import Path

import pytest

from dmlscale.tracking.store import artifact_folder, dashboard_command, resolve_uri, run_url


def test_explicit_before_environment_before_local_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-env:5000")
    assert resolve_uri("http://explicit:1") == "http://explicit:1"
    assert resolve_uri(None) == resolve_uri("") == "http://from-env:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert resolve_uri(None, folder=tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_sqlite_paths_are_absolute_wherever_a_worker_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolve_uri("sqlite:///runs/my.db") == f"sqlite:///{tmp_path}/runs/my.db"
    assert resolve_uri("sqlite:////abs/my.db") == "sqlite:////abs/my.db"
    assert artifact_folder("sqlite:////abs/my.db") == Path("/abs/my_artifacts")
    assert artifact_folder("http://server") is None


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_folders_of_files_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="sqlite:////absolute/path"):
        resolve_uri(uri)


def test_dashboard_of_a_local_store_and_of_a_server() -> None:
    words = shlex.split(dashboard_command("sqlite:////my runs/mlflow.db", port=5055))
    assert words[2:] == [
        "mlflow",
        "ui",
        "--backend-store-uri",
        "sqlite:////my runs/mlflow.db",
        "--host",
        "127.0.0.1",
        "--port",
        "5055",
    ]
    assert dashboard_command("http://server:5000") == "http://server:5000"
    assert run_url("http://server:5000/", "abc") == "http://server:5000/#/runs/abc"
    assert run_url("sqlite:////x.db", "abc") == "http://127.0.0.1:5000/#/runs/abc"
