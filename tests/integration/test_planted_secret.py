"""Secrets are planted in every place that a user has for them, and looked for in everything that a training leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmlscale.cli import main
from tests.data.servers import S3Server
from tests.integration.runs import BESIDE_OTHERS, write_config

PLANTED = {
    "PLANTED_KEY": "pl4nted-key-7f3a9c",
    "PLANTED_SECRET": "pl4nted-secret-51be02",
    "MLFLOW_TRACKING_PASSWORD": "pl4nted-password-c4d8e6",
    "HF_TOKEN": "pl4nted-token-90ab3f",
    "RAY_AUTH_TOKEN": "pl4nted-ray-2d6e71-00000000000000000000",
}
MARK = b"pl4nted"
OPTIONS = {"key": "env:PLANTED_KEY", "secret": "env:PLANTED_SECRET"}


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For Ray's sockets, whose paths may have 107 letters."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def far_config(folder: Path, glyphs: Path, server: S3Server, **options: Any) -> Path:
    path = write_config(
        folder / "planted.yaml",
        glyphs,
        folder,
        train={"steps": 6, "log_every": 1, "eval_every": 3, "checkpoint_every": 3},
        evaluation={"batch_size": 64, "gallery_queries": 3, "report": True},
        tracking={"uri": f"sqlite:///{folder / 'mlflow.db'}", "experiment": "tests", "registered_model": "planted"},
    )
    values = yaml.safe_load(path.read_text())
    values["data"] |= {"path": "s3://bucket/glyphs", "cache_folder": str(folder / "cache"), "retry_seconds": 20}
    values["data"]["storage_options"] = server.options | OPTIONS | options
    path.write_text(yaml.safe_dump(values))
    return path


def run(folder: Path, temporary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    own = {"HOME": str(folder / "home"), "RAY_TMPDIR": str(temporary)} | BESIDE_OTHERS
    command = [sys.executable, "-m", "dmlscale.cli", "train", *arguments]
    return subprocess.run(
        command, env=environment | PLANTED | own, cwd=folder, capture_output=True, text=True, timeout=280
    )


def files_with_mark(*folders: Path) -> list[Path]:
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if MARK in content(path)]


def content(path: Path) -> bytes:
    """Of a file, which may be deleted at this moment: Ray's processes tidy up after the command has ended."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


@pytest.mark.parametrize("how", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_what_a_training_leaves_has_no_secret(glyphs: Path, tmp_path: Path, short_folder: Path, how: str) -> None:
    with S3Server(glyphs) as server:
        config = far_config(tmp_path, glyphs, server)
        done = run(tmp_path, short_folder, str(config), *(["--local"] if how == "local" else []))
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert MARK.decode() not in output
    run_folder = tmp_path / "runs" / "small"
    kept = yaml.safe_load((run_folder / "config.yaml").read_text())["data"]["storage_options"]
    assert OPTIONS.items() <= kept.items()
    for made in ("model/model.json", "report/report.html", "checkpoints/step_00000006/record.json"):
        assert (run_folder / made).is_file()
    assert b"env:PLANTED_SECRET" in (tmp_path / "mlflow.db").read_bytes()  # so the params were looked through
    assert list((tmp_path / "mlflow_artifacts").rglob("model.json"))
    assert how == "local" or list(short_folder.rglob("raylet.out"))
    assert files_with_mark(tmp_path, short_folder) == []


def test_a_key_that_cannot_be_sent_is_not_told(
    glyphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has a newline at its end, as from a careless `echo`, which no header can hold."""
    monkeypatch.setenv("PLANTED_KEY", f"{PLANTED['PLANTED_KEY']}\n")
    monkeypatch.setenv("PLANTED_SECRET", PLANTED["PLANTED_SECRET"])
    with S3Server(glyphs) as server:
        config = far_config(tmp_path, glyphs, server)
        assert main(["train", str(config), "--local", "data.retry_seconds=0"]) == 2
    told = capsys.readouterr()
    assert "s3://bucket/glyphs" in told.err
    assert MARK.decode() not in told.out + told.err
    assert files_with_mark(tmp_path) == []


def test_a_missing_variable_is_named_before_any_work(
    glyphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLANTED_KEY", PLANTED["PLANTED_KEY"])
    monkeypatch.delenv("PLANTED_SECRET", raising=False)
    config = far_config(tmp_path, glyphs, S3Server(glyphs))
    assert main(["train", str(config), "--local"]) == 2
    told = capsys.readouterr().err
    assert "data.storage_options.secret refers to the environment variable PLANTED_SECRET" in told


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("tracking.uri", f"tracking.uri=http://me:{MARK.decode()}-1@127.0.0.1:5000"),
        ("data.storage_options.secret", f"data.storage_options.secret={MARK.decode()}-2"),
        ("MLFLOW_TRACKING_URI", "tracking.uri=null"),
    ],
)
def test_secrets_in_the_open_are_refused(
    glyphs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    override: str,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{MARK.decode()}-3@mlflow.our.net")
    config = write_config(tmp_path / "small.yaml", glyphs, tmp_path)
    assert main(["train", str(config), "--local", override]) == 2
    told = capsys.readouterr()
    assert name in told.err
    assert MARK.decode() not in told.out + told.err
    assert files_with_mark(tmp_path) == []
