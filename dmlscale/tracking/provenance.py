"""Which code made a run, who, and in which job of a cluster."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
from pathlib import Path

GIT_TAGS = "DMLSCALE_GIT_TAGS"


def git_tags(folder: Path) -> dict[str, str]:
    """Tags with the commit, branch and state of the work tree; empty outside a repository or without git.

    `mlflow.source.git.commit` is the name under which MLflow shows the commit on the run's page. A job that runs in a
    copy without a repository takes what DMLSCALE_GIT_TAGS says, which `dmlscale submit` sets.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {str(name): str(value) for name, value in json.loads(os.environ.get(GIT_TAGS, "{}")).items()}
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or ""
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    tags = {"mlflow.source.git.commit": commit, "git.dirty": str(bool(changes)).lower()}
    if branch not in ("", "HEAD"):
        tags["mlflow.source.git.branch"] = branch
    return tags


def cluster_tags() -> dict[str, str]:
    """The id of the cluster's job that this process belongs to: of Ray's job API, of Slurm, or none."""
    tags = {}
    try:
        # Set for the entry point of every job that is submitted to Ray.
        job = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"]
        tags["cluster.ray_job"] = str(job)
    except (KeyError, TypeError, ValueError):
        pass
    if "SLURM_JOB_ID" in os.environ:
        tags["cluster.slurm_job"] = os.environ["SLURM_JOB_ID"]
    return tags


def user_name() -> str:
    """Who runs this, as far as the machine knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return os.environ.get("USER", "unknown")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
