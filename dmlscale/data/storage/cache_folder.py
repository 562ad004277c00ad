"""The files of a shard cache on the disk: where each lies, how much they take, which go first."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from dmlscale.data.errors import DataError
from dmlscale.data.storage.locks import locked, remove_unless_kept, sole_owner
from dmlscale.data.storage.references import resolved
from dmlscale.data.storage.storage import Storage, part_path
from dmlscale.redaction import shown

# cache/.lock               held while room is made
# cache/3f0c....txt         which folder or bucket the files of 3f0c... are from
# cache/3f0c.../train-000000.tar
# cache/3f0c.../.train-000001.tar.lock   somebody is downloading it; the number of bytes that it will have
# cache/3f0c.../.train-000001.tar.part   what of it has come
_LOCK = ".lock"
_LONGEST_NAME = 200  # bytes; file systems allow 255, and the names of lock and part are longer


class _Entry(NamedTuple):
    """A complete file of the cache."""

    last_use: int  # nanoseconds
    size: int  # bytes
    path: Path


@dataclass(frozen=True)
class CacheFolder:
    """A folder that holds at most ``max_bytes`` of copies; several processes may use it."""

    path: Path
    max_bytes: int

    def place(self, storage: Storage, name: str) -> Path:
        """Where the copy of a file belongs, whether it is there or not.

        Files of one folder of one server are together; another endpoint or version of the dataset is another folder.
        """
        parent, _, base = storage.url(name).rpartition("/")
        client = storage.options.get("client_kwargs", {})
        endpoint = storage.options.get("endpoint_url") or client.get("endpoint_url") or ""
        endpoint = resolved({"endpoint_url": endpoint})["endpoint_url"]
        folder = _digest(f"{parent}\n{endpoint}\n{storage.version}")
        base = quote(base, safe="+=,@")
        if len(base) > _LONGEST_NAME:
            base = _digest(base)
        return self.path / folder / (f"%2E{base[1:]}" if base.startswith(".") else base)

    def prepare(self, storage: Storage, name: str) -> None:
        """Make the folder of a file and note where its files are from.

        Raises:
            DataError: the cache's folder cannot be written.
        """
        folder = self.place(storage, name).parent
        note = folder.with_suffix(".txt")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not note.exists():
                of_version = f", version {storage.version}" if storage.version else ""
                note.write_text(
                    f"{folder.name}: copies of files from {shown(storage.url(name).rpartition('/')[0])}{of_version}\n"
                    "Made by dmlscale, which fetches them again where they are missing.\n"
                )
            if not os.access(folder, os.W_OK):
                raise PermissionError(f"{folder} is read-only for this user")
        except OSError as error:
            raise DataError(f"cannot write to the cache {self.path}: {error}; set data.cache_folder") from None

    def reserve(self, lock: Path, num_bytes: int, *, at_any_price: bool) -> int | None:
        """Make room for a file that is about to be downloaded: the least recently used ones go.

        Args:
            lock: of the file, held by the caller; it notes the reservation there.
            num_bytes: of the file.
            at_any_price: reserve although the files that somebody keeps open leave no room.

        Returns:
            How many bytes the cache has above ``max_bytes`` now; None if there was no room and nothing was reserved.
        """
        with locked(self.path / ".lock"):
            excess = self._make_room(num_bytes, lock)
            if excess and not at_any_price:
                return None
            lock.write_text(str(num_bytes))
            return excess

    def used_bytes(self) -> int:
        """Bytes of all copies, those on their way included."""
        if not self.path.is_dir():
            return 0
        with locked(self.path / ".lock"):
            entries, pending = self._scan()
        return sum(entry.size for entry in entries) + pending

    def _make_room(self, num_bytes: int, own_lock: Path) -> int:
        entries, pending = self._scan(own_lock)
        excess = sum(entry.size for entry in entries) + pending + num_bytes - self.max_bytes
        for entry in sorted(entries):
            if excess <= 0:
                break
            if remove_unless_kept(entry.path):
                excess -= entry.size
        return max(0, excess)

    def _scan(self, own_lock: Path | None = None) -> tuple[list[_Entry], int]:
        """The copies that may be removed, and the bytes of those that somebody else is downloading."""
        entries, pending = [], 0
        for note in self.path.glob("*.txt"):
            folder = note.with_suffix("")
            if not folder.is_dir():  # a foreign text
                continue
            names = set(os.listdir(folder))
            for path in (folder / name for name in names):
                with suppress(FileNotFoundError):  # done or removed meanwhile
                    if path.name.endswith(_LOCK):
                        pending += _pending_bytes(path) if path != own_lock else 0
                    elif not path.name.startswith(".") and lock_path(path).name not in names:
                        status = path.stat()
                        entries.append(_Entry(status.st_mtime_ns, status.st_size, path))
        return entries, pending


def _pending_bytes(lock: Path) -> int:
    """What is reserved for the file of a lock; what a dead process has left of it is removed."""
    file = lock.with_name(lock.name.removeprefix(".").removesuffix(_LOCK))
    with sole_owner(lock, wait=False) as is_abandoned:
        if is_abandoned:
            part_path(file).unlink(missing_ok=True)
        else:
            with suppress(FileNotFoundError):
                if reserved := lock.read_text():
                    return int(reserved)
    # Nobody is at it: it came between two looks, or is not there. Or whoever waited for it has just got the lock, has
    # reserved nothing, and will find what the one before has left.
    return file.stat().st_size


def lock_path(file: Path) -> Path:
    """The lock that the one who downloads ``file`` holds."""
    return file.with_name(f".{file.name}{_LOCK}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
