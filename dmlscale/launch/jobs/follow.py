"""Watching a job: its log as it grows, over lost connections, and the exit code at its end."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import aiohttp
import requests

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs.client import asking

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENDED_LINE = "ended with exit code"  # that a job writes itself, since Ray keeps none of a job that was stopped
RETRY_SECONDS = 120.0
_SILENCE_SECONDS = 60.0
# What the client raises when a connection is lost; a minute's silence is a TimeoutError, an OSError.
_LOST = (aiohttp.ClientError, requests.RequestException, OSError, RuntimeError)
_TAIL = 20_000  # characters of the log in which the reason of an end is looked for
_EXIT_KILLED = 137
_EXIT_INTERRUPTED = 130


class Printed:
    """Prints a log that comes from its beginning again after each lost connection, once.

    Args:
        write: prints.
        past: characters at the beginning that are not printed.
    """

    def __init__(self, write: Callable[[str], object], past: int = 0) -> None:
        self._write = write
        self._printed = past
        self._seen = 0
        self.tail = ""

    def begin(self) -> None:
        """The log comes from its beginning."""
        self._seen = 0

    def take(self, text: str) -> None:
        """The next piece of it."""
        new = text[max(0, self._printed - self._seen) :]
        self._seen += len(text)
        self._printed = max(self._printed, self._seen)
        self.tail = (self.tail + new)[-_TAIL:]
        self._write(new)


def follow(client: JobSubmissionClient, job: str, *, past: int = 0, retry_seconds: float = RETRY_SECONDS) -> int:
    """Prints the log of a job until its end.

    Args:
        client: of its cluster.
        job: its id.
        past: characters of the log that are known already.
        retry_seconds: how long a cluster that does not answer is asked again.

    Returns:
        The exit code of the command, 137 if it was killed, 1 if the cluster is gone, 130 after Ctrl-C, which leaves
        the job alone.

    Raises:
        LaunchError: there is no such job, or it could not begin; with what to do.
    """
    log = Printed(_print, past)
    again = f"dmlscale jobs logs {job} --follow --address {client.get_address()}"
    with asking(client.get_address()):
        client.get_job_info(job)
    try:
        info = _until_end(client, job, log, retry_seconds)
    except KeyboardInterrupt:
        print(f"\nno longer followed; the job goes on. To follow it:  {again}", file=sys.stderr)
        print(f"to stop it:  dmlscale jobs stop {job} --address {client.get_address()}", file=sys.stderr)
        return _EXIT_INTERRUPTED
    if info is None:
        print(f"\nthe cluster has not answered for {retry_seconds:g} s; the job may go on: {again}", file=sys.stderr)
        return 1
    return exit_code(info, log.tail)


def _print(text: str) -> None:
    print(text, end="", flush=True)


def _until_end(client: JobSubmissionClient, job: str, log: Printed, retry_seconds: float) -> Any:
    """What Ray says of the job in the end; None if the cluster stopped answering."""
    answered = time.monotonic()
    while True:
        is_whole = False
        try:
            asyncio.run(_tail(client, job, log))
            is_whole = True
        except _LOST:
            pass
        try:
            info = client.get_job_info(job)
            if info.status.is_terminal():
                if not is_whole:
                    log.begin()
                    log.take(client.get_job_logs(job))
                return info
            answered = time.monotonic()
        except _LOST:
            if time.monotonic() - answered > retry_seconds:
                return None
        time.sleep(1.0)


async def _tail(client: JobSubmissionClient, job: str, log: Printed) -> None:
    """Prints what comes, until the job ends.

    Raises:
        TimeoutError: nothing came for a minute: the connection may be gone without a sign.
    """
    log.begin()
    pieces = aiter(client.tail_job_logs(job))
    while True:
        try:
            log.take(await asyncio.wait_for(anext(pieces), _SILENCE_SECONDS))
        except StopAsyncIteration:
            return


def exit_code(info: Any, tail: str) -> int:
    """The exit code of a job that has ended.

    Args:
        info: Ray's details of the job.
        tail: the end of its log.

    Raises:
        LaunchError: the command could not begin.
    """
    from ray.job_submission import JobStatus

    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        said = re.findall(rf"^{ENDED_LINE} (\d+)$", tail, re.MULTILINE)
        return int(said[-1]) if said else _EXIT_KILLED
    _refuse_if_never_began(info, tail)
    if info.driver_exit_code is None:
        print(f"\n{info.message or 'Ray does not say why the job failed'}", file=sys.stderr)
        return 1
    return shell_code(info.driver_exit_code)


def shell_code(code: int) -> int:
    """An exit code as shells tell it: 137 for what signal 9 ended, of which Ray says -9."""
    return int(code) if code >= 0 else 128 - int(code)


def _refuse_if_never_began(info: Any, tail: str) -> None:
    """Turns what a node's shell or Python says into words.

    Raises:
        LaunchError: the image lacks Python or the package.
    """
    if "No module named 'dmlscale" in tail:
        raise LaunchError(
            "the cluster's image has no dmlscale that can run this: install the version from here on all nodes, add "
            "--ship-package to send it along, or submit from the folder that holds dmlscale/"
        )
    if info.driver_exit_code == 127 or "python: not found" in tail:
        raise LaunchError(
            "there is no `python` on the PATH of the cluster's head: start Ray there with the environment's bin folder "
            "on the PATH"
        )
    if info.driver_exit_code is None and "runtime_env" in (info.message or ""):
        raise LaunchError(f"the cluster could not set up the job's environment: {info.message}")
