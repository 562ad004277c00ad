"""Shards on a web server, processes that fetch them, and what a cache holds of them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmlscale.data.storage.retry import Retry
from tests.data.servers import HttpServer

SIZE = 300_000
QUICK = Retry(seconds=20, first_wait=0.05, longest_wait=0.2)


def content(number: int, size: int = SIZE) -> bytes:
    return bytes([number]) * size


@contextmanager
def served_shards(folder: Path) -> Iterator[HttpServer]:
    """A web server in ``folder`` with "0.tar" to "5.tar", each filled with its number."""
    (folder / "served").mkdir()
    for number in range(6):
        (folder / "served" / f"{number}.tar").write_bytes(content(number))
    with HttpServer(folder / "served", folder / "state") as server:
        yield server


def copies(cache_folder: Path) -> set[str]:
    """Names of the complete files of a cache."""
    return {path.name for path in cache_folder.glob("*/*") if not path.name.startswith(".")}


def leftovers(cache_folder: Path) -> list[Path]:
    return [path for path in cache_folder.glob("*/*") if path.name.startswith(".")]


def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A Python process with the pickled ``arguments`` as ``a``."""
    command = f"import pickle, sys\na = pickle.load(sys.stdin.buffer)\n{script}"
    process = subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(arguments))
    process.stdin.close()
    return process


def output(process: subprocess.Popen[bytes]) -> bytes:
    """What a process has printed, at its end."""
    assert process.stdout is not None
    with process, process.stdout:
        return process.stdout.read()
