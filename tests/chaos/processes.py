"""The processes of a host, as the machine that holds all hosts sees them."""

from __future__ import annotations

import os
from contextlib import suppress

import psutil

from tests.hosts.network import Hosts


def on_host(hosts: Hosts, name: str, *words: str) -> list[psutil.Process]:
    """Processes of a host that is up whose command line has all of the words, the oldest first."""
    space = _space(hosts.first_process(name))
    found = []
    for process in psutil.process_iter():
        # Processes end while we look; of some we may not know.
        with suppress(psutil.Error, OSError):
            line = " ".join(process.cmdline())
            if line and _space(process.pid) == space and all(word in line for word in words):
                found.append((process.create_time(), process.pid, process))
    return [process for *_, process in sorted(found)]


def _space(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")
