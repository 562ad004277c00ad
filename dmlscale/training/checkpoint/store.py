"""Where a run's checkpoints are kept: in a folder, or under a URL that fsspec knows (`remote_store.py`)."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fsspec.utils import get_protocol

from dmlscale.data.storage.file_systems import is_local
from dmlscale.training.checkpoint.folder import NAME, list_checkpoints
from dmlscale.training.checkpoint.manifest import RECORD_FILE, parse_manifest
from dmlscale.training.state import Record


class Store(Protocol):
    """Checkpoints by name, each with its files. What fails raises an OSError or a CheckpointError that names the place.

    A checkpoint without ``record.json`` is not there yet, or no more: a partial one.
    """

    place: str
    """The folder or URL, as people may see it."""
    look_every_s: float
    """How often to look whether a file of another rank is there."""

    def stage(self, name: str) -> Path:
        """A folder of this machine in which a rank writes its files of a checkpoint."""
        ...

    def deliver(self, name: str, file: str) -> None:
        """Bring a file that was written there to its place."""
        ...

    def put(self, name: str, file: str, text: str) -> None:
        """Write a small file, all of it or nothing."""
        ...

    def get(self, name: str, file: str) -> str | None:
        """A small file; None if it is not there."""
        ...

    def complete(self) -> list[str]:
        """Names of the checkpoints that have a record, oldest first."""
        ...

    def partial(self) -> list[str]:
        """Names of those that have none, oldest first."""
        ...

    def files(self, name: str) -> list[str]:
        """The files of a checkpoint, complete or not."""
        ...

    def remove_file(self, name: str, file: str) -> None:
        """Remove a file, if it is there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a checkpoint; its record first, so that it is none from the first moment on."""
        ...

    def fetch(self, name: str, into: Path) -> Path:
        """A folder of this machine with all files of a checkpoint: copied into ``into``, or where they lie.

        Of processes that copy into the same folder at the same time each file is copied by one.
        """
        ...

    def free_bytes(self) -> int | None:
        """What may still be written; None where that is not known."""
        ...

    def check_writable(self) -> None:
        """Write a file and remove it again."""
        ...


class LocalStore:
    """A folder that all ranks see."""

    look_every_s = 0.01

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)

    def stage(self, name: str) -> Path:
        """See `Store`. The parent must be there: a mount that is gone must not become a folder on another disk."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def deliver(self, name: str, file: str) -> None:
        """It lies where it belongs; its name is made safe from a loss of power."""
        _sync_folder(self.folder / name)

    def put(self, name: str, file: str, text: str) -> None:
        """See `Store`."""
        path = self.folder / name / file
        temporary = path.with_name(f".{file}.new")
        try:
            with temporary.open("w") as opened:
                opened.write(text)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    def get(self, name: str, file: str) -> str | None:
        """See `Store`."""
        try:
            return (self.folder / name / file).read_text(errors="replace")  # damaged, it is no JSON all the same
        except FileNotFoundError:
            return None

    def complete(self) -> list[str]:
        """See `Store`."""
        return [path.name for path in list_checkpoints(self.folder)]

    def partial(self) -> list[str]:
        """See `Store`."""
        found = [path.name for path in self.folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
        return sorted((n for n in found if not (self.folder / n / RECORD_FILE).is_file()), key=step_of_name)

    def files(self, name: str) -> list[str]:
        """See `Store`."""
        path = self.folder / name
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        return sorted(name for name in names if not name.startswith("."))  # in those `put` is at work

    def remove_file(self, name: str, file: str) -> None:
        """See `Store`."""
        (self.folder / name / file).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See `Store`."""
        path = self.folder / name
        (path / RECORD_FILE).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)

    def fetch(self, name: str, into: Path) -> Path:
        """See `Store`."""
        return self.folder / name

    def free_bytes(self) -> int | None:
        """See `Store`."""
        return shutil.disk_usage(self.folder).free

    def check_writable(self) -> None:
        """See `Store`."""
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".writable-") as file:
            file.write(b"yes")


def open_store(place: str, options: Mapping[str, Any]) -> Store:
    """The store of a folder or a URL; a folder is made.

    Args:
        place: a path, ``file://...``, or any URL that fsspec knows.
        options: of fsspec's file system, with ``env:NAME`` where a secret belongs.

    Raises:
        CheckpointError: no such protocol, or options that do not suit it.
        OSError: the folder cannot be made.
    """
    if is_local(get_protocol(place)):
        folder = Path(place.removeprefix("file://").removeprefix("local://")).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return LocalStore(folder)
    from dmlscale.training.checkpoint.remote_store import RemoteStore

    return RemoteStore(place, options)


def step_of_name(name: str) -> int:
    """The step of the checkpoint of this name."""
    return int(name.removeprefix("step_"))


def record_in(store: Store, name: str) -> Record:
    """Where the run stood at a checkpoint.

    Raises:
        CheckpointError: its record is missing or damaged.
        OSError: it cannot be read.
    """
    return parse_manifest(store.get(name, RECORD_FILE) or "", f"cannot read {store.place}/{name}/{RECORD_FILE}").record


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to write through
            raise
    finally:
        os.close(descriptor)
