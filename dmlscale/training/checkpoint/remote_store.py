"""Checkpoints under a URL: written on this machine first, then uploaded, the record last."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from dmlscale.data.errors import DataError
from dmlscale.data.storage.cache_folder import lock_path
from dmlscale.data.storage.file_systems import connect
from dmlscale.data.storage.locks import sole_owner
from dmlscale.data.storage.references import resolved, secret_values
from dmlscale.data.storage.storage import part_path
from dmlscale.data.storage.transfer_errors import MissingFileError, TransferError, clear_errors
from dmlscale.redaction import shown
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.folder import NAME
from dmlscale.training.checkpoint.manifest import RECORD_FILE
from dmlscale.training.checkpoint.scratch import Scratch
from dmlscale.training.checkpoint.store import step_of_name

_KEY = "train.checkpoint_storage_options"

T = TypeVar("T")


class RemoteStore:
    """A `Store` under a URL. The options are resolved at each connection, and never kept with their secrets.

    Args:
        url: of the folder of checkpoints.
        options: of fsspec's file system, with ``env:NAME`` where a secret belongs.
        retry_seconds: how long a request that failed is tried again.
        silence_seconds: how long a server may say nothing before that is a failure.

    Raises:
        CheckpointError: no such protocol, or options that do not suit it.
    """

    look_every_s = 0.5

    def __init__(
        self, url: str, options: Mapping[str, Any], *, retry_seconds: float = 30.0, silence_seconds: float = 30.0
    ) -> None:
        self.url, self.place = url.rstrip("/"), shown(url.rstrip("/"))
        self._retry_seconds = retry_seconds
        self._options, self._silence_seconds = dict(options), silence_seconds
        self._root = self._connect()[1].rstrip("/")
        self._scratch: Scratch | None = None

    def stage(self, name: str) -> Path:
        """See `Store`."""
        if self._scratch is None:
            self._scratch = Scratch()
        path = self._scratch.path / name
        path.mkdir(parents=True, exist_ok=True)  # a machine may clear its temporary folder of what is old
        return path

    def deliver(self, name: str, file: str) -> None:
        """See `Store`. Here the file is gone afterwards, uploaded or not: its space is needed by the next."""
        staged = self.stage(name) / file
        try:
            self._try(lambda: self._files.put_file(str(staged), self._path(name, file)), "written")
        finally:
            staged.unlink(missing_ok=True)

    def put(self, name: str, file: str, text: str) -> None:
        """See `Store`."""
        self._try(lambda: self._files.pipe_file(self._path(name, file), text.encode()), "written")

    def get(self, name: str, file: str) -> str | None:
        """See `Store`."""
        try:
            data: bytes = self._try(lambda: self._files.cat_file(self._path(name, file)), "read")
        except _MissingError:
            return None
        return data.decode(errors="replace")

    def complete(self) -> list[str]:
        """See `Store`."""
        return sorted((name for name, files in self._tree().items() if RECORD_FILE in files), key=step_of_name)

    def partial(self) -> list[str]:
        """See `Store`."""
        return sorted((name for name, files in self._tree().items() if RECORD_FILE not in files), key=step_of_name)

    def files(self, name: str) -> list[str]:
        """See `Store`."""
        return sorted(self._tree().get(name, set()))

    def remove_file(self, name: str, file: str) -> None:
        """See `Store`."""
        try:
            self._try(lambda: self._files.rm_file(self._path(name, file)), "removed")
        except _MissingError:
            return

    def remove(self, name: str) -> None:
        """See `Store`."""
        for file in sorted(self.files(name), key=lambda file: file != RECORD_FILE):
            self.remove_file(name, file)

    def fetch(self, name: str, into: Path) -> Path:
        """See `Store`."""
        target = into / name
        target.mkdir(parents=True, exist_ok=True)
        files = self.files(name)
        # First what nobody is at; then what others are at, and it is there, or they have died.
        for wait in (False, True):
            for file in files:
                self._fetch_file(name, file, target / file, wait=wait)
        return target

    def free_bytes(self) -> int | None:
        """See `Store`."""
        return None

    def check_writable(self) -> None:
        """See `Store`."""
        name, file = ".writable", uuid.uuid4().hex
        self.put(name, file, "yes")
        self.remove_file(name, file)

    def _fetch_file(self, name: str, file: str, target: Path, *, wait: bool) -> None:
        if target.exists():
            return
        with sole_owner(lock_path(target), wait=wait) as is_mine:
            if not is_mine or target.exists():
                return
            part = part_path(target)
            try:
                self._try(lambda: self._copy(self._path(name, file), part), "read")
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)  # after an error: others need its space

    def _copy(self, path: str, to: Path) -> None:
        try:
            self._files.get_file(path, str(to))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(f"no space left for {to}: free some, or set TMPDIR to a larger folder") from error
            raise

    @property
    def _files(self) -> AbstractFileSystem:
        return self._connect()[0]

    def _connect(self) -> tuple[AbstractFileSystem, str]:
        try:
            return connect(self.url, resolved(self._options, _KEY), self._silence_seconds)  # which keeps connections
        except DataError as error:
            raise CheckpointError(f"{self.place}: {error}") from error

    def _path(self, name: str, file: str) -> str:
        return f"{self._root}/{name}/{file}"

    def _tree(self) -> dict[str, set[str]]:
        """The files of each checkpoint, as the server has them now."""
        self._files.invalidate_cache()
        found: dict[str, set[str]] = {}
        try:
            paths: list[str] = self._try(lambda: self._files.find(self._root), "read")
        except _MissingError:
            return {}
        for path in paths:
            name, _, file = path.removeprefix(self._root).lstrip("/").partition("/")
            if NAME.fullmatch(name) and file and "/" not in file:
                found.setdefault(name, set()).add(file)
        return found

    def _try(self, request: Callable[[], T], verb: str) -> T:
        """The answer to a request, which is made again where that may help.

        Raises:
            _MissingError: there is no such file.
            CheckpointError: the server refuses it, or did not answer for as long as it is tried.
        """
        tries = Retrying(
            retry=retry_if_exception_type(TransferError),
            stop=stop_after_delay(self._retry_seconds),
            wait=wait_random_exponential(0.2, max=5),
            reraise=True,
        )
        try:
            return tries(self._once, request)
        except MissingFileError as error:
            raise _MissingError(str(error)) from error
        except DataError as error:
            raise CheckpointError(f"{self.place} cannot be {verb}: {error}") from error

    def _once(self, request: Callable[[], T]) -> T:
        with clear_errors(self.url, secret_values(self._options)):
            return request()


class _MissingError(CheckpointError):
    """There is no such file, or bucket."""
