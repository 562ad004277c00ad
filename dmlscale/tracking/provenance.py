"""Which code made a run."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_tags(folder: Path) -> dict[str, str]:
    """Tags with the commit, branch and state of the work tree; empty outside a repository or without git.

    `mlflow.source.git.commit` is the name under which MLflow shows the commit on the run's page.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or ""
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    tags = {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changes)).lower()}
    if branch not in ("", "HEAD"):
        tags["mlflow.source.git.branch"] = branch
    return tags


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
