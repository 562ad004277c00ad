"""Copies of far shards on the machine's disk, shared by all its processes and limited in size."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dmlscale.data.errors import DataError
from dmlscale.data.storage.cache_folder import CacheFolder, lock_path
from dmlscale.data.storage.locks import open_kept, sole_owner
from dmlscale.data.storage.retry import Retry
from dmlscale.data.storage.storage import Storage
from dmlscale.data.storage.transfer_errors import MissingFileError
from dmlscale.redaction import shown

logger = logging.getLogger("dmlscale.data")

DEFAULT_CACHE_BYTES = 50 * 10**9


class CacheFullError(Exception):
    """There is no room without removing files that somebody uses."""


def default_cache_folder() -> Path:
    """``$DMLSCALE_CACHE``, or a folder in the user's home."""
    return Path(os.environ.get("DMLSCALE_CACHE") or "~/.cache/dmlscale").expanduser().absolute()


class ShardCache:
    """Fetches files of storages and keeps the most recently used ones.

    Any number of threads and processes may use one folder at the same time: a file is downloaded by one of them
    while the others wait for it. Whatever happens to a process, what lies in the cache under its own name is
    complete. Holds nothing open and may be pickled.

    Args:
        folder: of the cache; made when it is needed. Everything in it may be deleted while no run uses it.
        max_bytes: that the copies may have together. Only files that are kept open can make it more.
        retry: how long to try again when a transfer fails.
    """

    def __init__(self, folder: Path, max_bytes: int, retry: Retry | None = None) -> None:
        self.retry = retry or Retry()
        self._folder = CacheFolder(folder.absolute(), max_bytes)
        self._has_warned = False

    def fetch(self, storage: Storage, name: str, size: int | None = None) -> Path:
        """The file on this machine: itself if it lies here, else a copy, downloaded if there is none.

        The copy may be removed as soon as others need room, so open it soon, or call ``open``; what is open or
        mapped stays readable.

        Args:
            storage: where the file lies.
            name: its name there.
            size: bytes that it must have, as the dataset's index knows; a copy of another size is stale or damaged
                and fetched again. None: any complete copy will do.

        Raises:
            MissingFileError: there is no such file.
            ShardError: it could not be downloaded within the time of ``retry``.
            DataError: no access, a file of another size than ``size``, one larger than the cache, no disk space.
        """
        if storage.holds_locally(name):
            return _local_file(storage, name, size)
        with self._keep(storage, name, size):
            return self._folder.place(storage, name)

    def open(self, storage: Storage, name: str, size: int | None = None) -> BinaryIO:
        """The file that ``fetch`` gives, open for reading; it stays in the cache until it is closed.

        Raises:
            DataError: as ``fetch``.
        """
        if storage.holds_locally(name):
            return _local_file(storage, name, size).open("rb")
        return self._keep(storage, name, size)

    def open_ahead(
        self,
        storage: Storage,
        name: str,
        size: int | None = None,
        *,
        stop: threading.Event | None = None,
        reserved: Callable[[], None] | None = None,
    ) -> BinaryIO | None:
        """As ``open``, for a file that is needed later: None if somebody else is downloading it.

        Args:
            storage: where the file lies; not this machine.
            name: its name there.
            size: as for ``fetch``.
            stop: when set, the transfer ends soon.
            reserved: called when there is room for the file, before its bytes come.

        Raises:
            CacheFullError: others use what would have to be removed.
            TransferStopped: ``stop`` was set.
            DataError: as ``fetch``.
        """
        return self._obtain(storage, name, size, is_urgent=False, stop=stop, reserved=reserved)

    def discard(self, storage: Storage, name: str) -> None:
        """Drop the copy of a file, which turned out to be damaged; who has it open may go on reading it."""
        self._folder.place(storage, name).unlink(missing_ok=True)

    def used_bytes(self) -> int:
        """Bytes that the copies take, those included that are being downloaded."""
        return self._folder.used_bytes()

    def _keep(self, storage: Storage, name: str, size: int | None) -> BinaryIO:
        file = None
        while file is None:
            file = self._obtain(storage, name, size, is_urgent=True, stop=None)
        return file

    def _obtain(
        self,
        storage: Storage,
        name: str,
        size: int | None,
        *,
        is_urgent: bool,
        stop: threading.Event | None,
        reserved: Callable[[], None] | None = None,
    ) -> BinaryIO | None:
        """The copy, open; None if another is downloading it and this is not urgent, or has just removed it."""
        path = self._folder.place(storage, name)
        if _is_here(path, size) and (file := open_kept(path)) is not None:
            return file
        self._folder.prepare(storage, name)
        began = time.monotonic()
        with sole_owner(lock_path(path), wait=is_urgent) as is_owner:
            if not is_owner:
                return None
            if not _is_here(path, size):
                # Waiting for others, who failed, counts: a dead server should not cost the time of each in turn.
                retrying = partial(
                    self.retry.call, url=storage.url(name), spent_seconds=time.monotonic() - began, stop=stop
                )
                if size is None:
                    size = retrying(lambda: storage.size(name))
                path.unlink(missing_ok=True)
                self._reserve(storage, name, path, size or 0, is_urgent=is_urgent)
                if reserved is not None:
                    reserved()
                retrying(lambda: storage.download(name, path, size=size, stop=stop))
                if size is None:  # the server did not tell before
                    self._reserve(storage, name, path, path.stat().st_size, is_urgent=True)
            return open_kept(path)  # as long as the lock is held nobody removes it

    def _reserve(self, storage: Storage, name: str, path: Path, size: int, *, is_urgent: bool) -> None:
        limit = self._folder.max_bytes
        if size > limit:
            path.unlink(missing_ok=True)
            raise DataError(
                f"{shown(storage.url(name))} has {size} bytes, but the cache {self._folder.path} may hold only "
                f"{limit}: raise data.cache_gb"
            )
        excess = self._folder.reserve(lock_path(path), size, at_any_price=is_urgent)
        if excess is None:
            raise CacheFullError
        if excess and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "cache %s: files in use take %d bytes more than data.cache_gb allows (%d): raise it",
                self._folder.path, excess, limit,
            )  # fmt: skip


def _is_here(path: Path, size: int | None) -> bool:
    """Whether a good copy is there; if so, it was used just now."""
    try:
        if size is not None and path.stat().st_size != size:
            return False
        now = time.time_ns()
        os.utime(path, ns=(now, now))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _local_file(storage: Storage, name: str, size: int | None) -> Path:
    path = storage.local_path(name)
    if not path.is_file():
        raise MissingFileError(f"{path} is missing: restore it")
    actual = path.stat().st_size
    if size is not None and actual != size:
        raise DataError(f"{path} has {actual} bytes, but the dataset's index says {size}: restore it")
    return path
