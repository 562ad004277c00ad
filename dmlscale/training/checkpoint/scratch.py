"""Temporary folders that outlive no process: what a killed one has left is removed at the next start.

Whether somebody is at a folder is told by a lock beside it, which the kernel lets go when its owner dies.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import socket
import tempfile
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

from dmlscale.data.storage.locks import open_kept, sole_owner


class Scratch:
    """A temporary folder of this machine, which the last process that has it removes.

    Args:
        token: of the folder; processes that give the same one share it. None: a folder for this process alone.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, token: str | None = None) -> None:
        _remove_abandoned()
        # With the machine's name, as a lock may mean nothing on another one that sees the same temporary folder.
        lock = Path(tempfile.gettempdir()) / f"{_prefix()}{token or uuid.uuid4().hex}.lock"
        try:
            kept = _kept(lock)
            self.path = lock.with_suffix("")
            self.path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            reason = f"{error.strerror}: set TMPDIR to a folder that can be written and whose files can be locked"
            raise OSError(error.errno, reason, str(lock)) from error
        self._end = weakref.finalize(self, _leave, kept, lock, os.getpid())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._end()


def _prefix() -> str:
    # No name of a machine has "@" in it, and so none is how another one begins.
    return f"checkpoint-{socket.gethostname()}@"


def _kept(lock: Path) -> BinaryIO:
    while True:
        lock.touch(mode=0o600)
        if (kept := open_kept(lock)) is not None:
            return kept  # else the last one who had it has removed it just now


def _leave(kept: BinaryIO, lock: Path, owner: int) -> None:
    if os.getpid() != owner:  # a fork of it
        return
    fcntl.flock(kept, fcntl.LOCK_UN)  # said aloud: a fork has the file open too
    kept.close()
    _remove_unless_kept(lock)


def _remove_unless_kept(lock: Path) -> None:
    with suppress(OSError), sole_owner(lock, wait=False) as is_abandoned:
        if is_abandoned:
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)


def _remove_abandoned() -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"{glob.escape(_prefix())}*.lock"):
        with suppress(OSError):
            if lock.lstat().st_uid == os.geteuid():
                _remove_unless_kept(lock)
