"""Where a dataset's files lie: a folder, an S3 bucket, a web server, or any other place that fsspec knows."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fsspec import AbstractFileSystem
from fsspec.callbacks import Callback
from fsspec.utils import get_protocol

from dmlscale.data.errors import DataError
from dmlscale.data.storage.file_systems import connect, is_http, is_local, is_s3, same_service
from dmlscale.data.storage.references import resolved, secret_values
from dmlscale.data.storage.transfer_errors import MissingFileError, TransferError, TransferStopped, clear_errors
from dmlscale.redaction import shown, without

READ_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Storage:
    """A folder of files with known names; nothing is listed and nothing is written.

    Holds no connection, so it may be pickled, and used from any thread or process. Make one with ``Storage.open``.
    """

    root: str  # an absolute path or a URL, without a slash at its end
    # Secrets stand in them by reference, see `references`; not shown, for those who put them there all the same.
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    timeout_seconds: float = READ_TIMEOUT_SECONDS
    version: str = ""  # of the dataset, if it tells one: copies of another version are never taken for this one's

    @staticmethod
    def open(
        path: str | Path,
        options: Mapping[str, Any] | None = None,
        *,
        timeout_seconds: float = READ_TIMEOUT_SECONDS,
    ) -> Storage:
        """The storage at ``path``; nothing is asked of its server yet.

        Args:
            path: "data/x", "/data/x", "file:///data/x", "s3://bucket/prefix", "https://host/folder" or any other
                URL of fsspec.
            options: of fsspec's file system, such as ``{"endpoint_url": ...}`` for S3. Credentials come from where
                the service's own tools look for them: environment, files, role of the machine; or by reference,
                ``{"secret": "env:NAME"}``, from a variable that is looked up for each transfer and kept nowhere.
            timeout_seconds: a web or S3 server that sends nothing for so long is taken as down.

        Raises:
            DataError: no such protocol, a package that it needs is missing, no host or bucket is named, or a variable
                that the options refer to is not set.
        """
        root = str(path)
        protocol = get_protocol(root)
        if is_local(protocol):
            _, root = connect(root, {}, timeout_seconds)
            return Storage(root.rstrip("/") or "/", dict(options or {}), timeout_seconds)
        place = root.partition("://")[2]
        needs_host = is_http(protocol) or is_s3(protocol)
        if not place.strip("/") or (needs_host and place.startswith("/")) or "::" in root:
            raise DataError(f"{shown(root)} is no place for a dataset: write it as {protocol}://place/folder")
        if is_http(protocol) and ("?" in place or "#" in place):
            raise DataError(f"{shown(root)} has a '?' or '#': names of files cannot be joined to it; give the folder")
        storage = Storage(root.rstrip("/"), dict(options or {}), timeout_seconds)
        storage._connect(storage.root)
        return storage

    def __str__(self) -> str:
        return shown(self.root)

    @property
    def is_local(self) -> bool:
        """Whether names without a place of their own are files of this machine."""
        return is_local(get_protocol(self.root))

    def url(self, name: str) -> str:
        """Where file ``name`` lies: in the root, or where it says itself if it is an absolute path or a URL."""
        if "://" in name or name.startswith("/"):
            return name
        return f"{self.root.rstrip('/')}/{quote(name) if is_http(get_protocol(self.root)) else name}"

    def holds_locally(self, name: str) -> bool:
        """Whether file ``name`` is a file of this machine, which needs no copy."""
        return is_local(get_protocol(self.url(name)))

    def local_path(self, name: str) -> Path:
        """The file itself.

        Raises:
            DataError: it is not on this machine.
        """
        url = self.url(name)
        if not is_local(get_protocol(url)):
            raise DataError(f"{shown(url)} is not on this machine: it must be fetched first")
        return Path(connect(url, {}, self.timeout_seconds)[1])

    def size(self, name: str) -> int | None:
        """Bytes of file ``name``; None if the server does not tell.

        Raises:
            MissingFileError: there is no such file.
            DataError: asking again will not help: no access, a wrong option.
            TransferError: it may help: no connection, no answer.
        """
        url = self.url(name)
        with clear_errors(url, secret_values(self._options_of(url))):
            file_system, path = self._connect(url)
            facts = file_system.info(path)
        if facts["type"] == "directory":
            raise MissingFileError(f"{shown(url)} is a folder, not a file")
        return None if facts["size"] is None else int(facts["size"])

    def download(self, name: str, to: Path, *, size: int | None = None, stop: threading.Event | None = None) -> None:
        """Copy file ``name`` to ``to``, which appears when it is complete.

        The bytes go to a hidden file beside it first; two callers at a time with the same ``to`` would disturb
        each other (``ShardCache`` sees to that).

        Args:
            name: of the file.
            to: the copy; replaced if it is there.
            size: bytes that it must have; None if that is not known. What the server says is checked in any case.
            stop: when set, the copy ends soon with TransferStopped.

        Raises:
            MissingFileError: there is no such file.
            DataError: trying again will not help: no access, a wrong option, a file of another size, a full disk.
            TransferError: it may help: no connection, no answer, an early end.
        """
        url = self.url(name)
        part = part_path(to)
        _create(part)
        progress = _Progress(stop)
        try:
            with clear_errors(url, secret_values(self._options_of(url))):
                file_system, path = self._connect(url)
                file_system.get_file(path, str(part), callback=progress)
            if not part.is_file():
                raise MissingFileError(f"{shown(url)} is a folder, not a file")
            _check_size(url, part.stat().st_size, progress, size)
            _write_through(part)
            part.replace(to)
        finally:
            if not part.is_dir():
                part.unlink(missing_ok=True)

    def _connect(self, url: str) -> tuple[AbstractFileSystem, str]:
        options = self._options_of(url)
        try:
            return connect(url, resolved(options), self.timeout_seconds)
        except DataError as error:
            message = without(str(error), secret_values(options))
        raise DataError(message)  # out of the block: what it came from may hold a secret

    def _options_of(self, url: str) -> Mapping[str, Any]:
        """The options, unless ``url`` leads to a service they were not made for."""
        return self.options if same_service(get_protocol(url), get_protocol(self.root)) else {}


def part_path(file: Path) -> Path:
    """Where the bytes of ``file`` are gathered until they are complete."""
    return file.with_name(f".{file.name}.part")


class _Progress(Callback):
    """Notes what the server says of the size and how much came; fsspec tells it after every piece."""

    def __init__(self, stop: threading.Event | None) -> None:
        super().__init__()
        self._stop = stop

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        if self._stop is not None and self._stop.is_set():
            raise TransferStopped


def _check_size(url: str, written: int, progress: Callback, expected: int | None) -> None:
    announced = progress.size
    # A file that was laid out in full before its pieces came has its size too early: count what came as well.
    received = written if announced is None else min(written, progress.value)
    if announced is not None and received != announced:
        raise TransferError(f"the transfer ended after {received} of {announced} bytes")
    if expected is None or received == expected:
        return
    if announced is None and received < expected:  # the server did not say when the end was to come
        raise TransferError(f"the transfer ended after {received} of {expected} bytes")
    raise DataError(
        f"{shown(url)} has {received} bytes, but the dataset's index says {expected}: index and file are of "
        f"different versions of the dataset, or the upload was cut short; upload the dataset again"
    )


def _create(part: Path) -> None:
    """Create the file, so that what fails later is the transfer and not the folder."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.open("wb").close()
    except OSError as error:
        raise DataError(f"cannot write to {part.parent}: {error.strerror}") from None


def _write_through(path: Path) -> None:
    """Bytes to the disk before the name: after a power cut no file may look complete that is not."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a file system that has nothing to write through
            return
        raise DataError(f"cannot write {path}: {error.strerror}; free some space or lower data.cache_gb") from None
    finally:
        os.close(descriptor)
