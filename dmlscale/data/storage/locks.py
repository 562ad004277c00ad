"""Locks between the threads and processes of a machine, which the kernel lets go when their owner dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock at ``path`` within the block; the file stays."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # said aloud: a process forked within the block has the file open too


@contextmanager
def sole_owner(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock at ``path`` within the block, and remove it at the end.

    Args:
        path: of the lock, which may hold a text; its folder must be there.
        wait: for another owner to be done.

    Yields:
        Whether the lock is held: False if there is another owner and ``wait`` is False.
    """
    file = _take(path, wait=wait)
    if file is None:
        yield False
        return
    with file:
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)  # before letting go, so that whoever waited sees that it has changed
            fcntl.flock(file, fcntl.LOCK_UN)


def _take(path: Path, *, wait: bool) -> BinaryIO | None:
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        if lies_at(file, path):
            return file
        file.close()  # the one who was waited for has removed it: what is at the path now is another lock


def open_kept(path: Path) -> BinaryIO | None:
    """Open a file so that ``remove_unless_kept`` leaves it alone until it is closed; None if it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if lies_at(file, path):
        return file
    file.close()
    return None


def remove_unless_kept(path: Path) -> bool:
    """Remove a file that nobody has from ``open_kept``; whether it is gone."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


def lies_at(file: BinaryIO, path: Path) -> bool:
    """Whether the open ``file`` is the one that ``path`` names now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
