"""The commands ``jobs list``, ``jobs logs`` and ``jobs stop``."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs.client import asking, connect, job_address
from dmlscale.launch.jobs.follow import follow, shell_code

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_WIDTH_OF_A_FILE = 160


def list_jobs(address: str | None, *, json_file: str | None = None) -> int:
    """Shows the submitted jobs of a cluster, the newest first.

    Raises:
        LaunchError: the cluster does not answer.
    """
    client = _client(address)
    with asking(client.get_address()):
        found = [info for info in client.list_jobs() if info.submission_id]
    rows = [_row(info) for info in sorted(found, key=lambda info: info.start_time or 0, reverse=True)]
    if json_file:
        Path(json_file).write_text(json.dumps(rows, indent=1) + "\n")
        return 0
    table = Table(title=f"jobs of {client.get_address()}", title_justify="left")
    for name in ("job", "command", "run", "status", "exit", "started", "took", "by"):
        table.add_column(name, overflow="fold", no_wrap=name in ("job", "status", "started"))
    for row in rows:
        started = "" if row["started"] is None else f"{datetime.fromtimestamp(row['started']):%m-%d %H:%M}"
        code = "" if row["exit_code"] is None else str(row["exit_code"])
        cells = (row["job"], row["command"], row["name"], row["status"], code, started, _took(row["seconds"]))
        table.add_row(*cells, row["user"])
    # Without markup: jobs of others may have brackets in their commands.
    Console(width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE, markup=False).print(table)
    return 0


def show_log(job: str, address: str | None, *, to_end: bool) -> int:
    """Prints what a job has written.

    Args:
        job: its id.
        address: of the cluster.
        to_end: whether to follow it to its end.

    Returns:
        0, or the job's exit code if it was followed.

    Raises:
        LaunchError: there is no such job, or the cluster does not answer.
    """
    client = _client(address)
    _info(client, job)
    if to_end:
        return follow(client, job)
    with asking(client.get_address()):
        print(client.get_job_logs(job), end="", flush=True)
    return 0


def stop_job(job: str, address: str | None, *, wait: bool = True) -> int:
    """Asks a job to stop, which saves a training first.

    Args:
        job: its id.
        address: of the cluster.
        wait: whether to follow it to its end.

    Returns:
        0 if it has stopped, or was over before; 137 if Ray had to kill it before it had saved.

    Raises:
        LaunchError: there is no such job, or the cluster does not answer.
    """
    client = _client(address)
    info = _info(client, job)
    if info.status.is_terminal():
        print(f"{job} is over already: {info.status.value}")
        return 0
    with asking(client.get_address()):
        past = len(client.get_job_logs(job))
        client.stop_job(job)
    print(f"{job} is asked to stop", flush=True)
    if not wait:
        return 0
    code = follow(client, job, past=past)
    return code if code in (1, 130, 137) else 0


def _client(address: str | None) -> JobSubmissionClient:
    return connect(job_address(address, os.environ))


def _info(client: JobSubmissionClient, job: str) -> Any:
    with asking(client.get_address()):
        known = {info.submission_id: info for info in client.list_jobs()}
    if job not in known:
        raise LaunchError(f"no job {job!r} on {client.get_address()}: `dmlscale jobs list` shows what there is")
    return known[job]


def _row(info: Any) -> dict[str, Any]:
    """What is told of a job, one that others submitted too."""
    metadata = info.metadata or {}
    end = (info.end_time or time.time() * 1000) / 1000
    started = None if not info.start_time else info.start_time / 1000
    command = " ".join(filter(None, (metadata.get("dmlscale.command"), metadata.get("dmlscale.subject"))))
    return {
        "job": info.submission_id,
        "command": command or info.entrypoint,
        "name": metadata.get("dmlscale.name", ""),
        "status": info.status.value,
        "exit_code": None if info.driver_exit_code is None else shell_code(info.driver_exit_code),
        "started": started,
        "seconds": None if started is None else end - started,
        "user": metadata.get("dmlscale.user", ""),
    }


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
