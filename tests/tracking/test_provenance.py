import subprocess
from pathlib import Path

import pytest

from dmlscale.tracking.provenance import GIT_TAGS, git_tags


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_branch_and_whether_the_code_was_changed(tmp_path: Path) -> None:
    _git(tmp_path, "init", "-q", "-b", "trunk")
    assert git_tags(tmp_path) == {}  # no commit yet
    (tmp_path / "code.py").write_text("1")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    expected = {"mlflow.source.git.commit": commit, "mlflow.source.git.branch": "trunk", "git.dirty": "false"}
    assert git_tags(tmp_path) == expected
    (tmp_path / "code.py").write_text("2")
    assert git_tags(tmp_path)["git.dirty"] == "true"


def test_no_repository_and_no_git_give_no_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_tags(tmp_path / "absent") == {}
    monkeypatch.setenv("PATH", "")
    assert git_tags(tmp_path) == {}


def test_a_job_in_a_copy_tells_the_commit_that_was_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GIT_TAGS, '{"mlflow.source.git.commit": "abc", "git.dirty": "true"}')
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": "abc", "git.dirty": "true"}
