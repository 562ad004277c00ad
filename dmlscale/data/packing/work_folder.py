"""The folder of what is not finished, inside the dataset's folder, and how a finished dataset gets out of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from dmlscale.data.errors import DataError
from dmlscale.data.layout import DUPLICATES_FILE, REJECTS_FILE, TABLE_FILES, is_complete

SCRATCH = "scratch"  # folder, in the folder of work, for what sources unpack
_WORK = ".packing"
_LOCK_FILE = "lock"
_REQUEST_FILE = "request.json"
_PUBLISHING_FILE = "publishing.json"  # the shards of a dataset that is being moved into place
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A locked folder inside ``folder``: on the same file system, and shows early that it is writable.

    Deleted at the end, unless an error leaves something in it with which the same packing goes on.

    Raises:
        DataError: it cannot be written, another process packs into it, or has just done so; the disk is full.
    """
    work = folder / _WORK
    try:
        (work / SCRATCH).mkdir(parents=True, exist_ok=True)
        lock = (work / _LOCK_FILE).open("w")
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise _full(folder) from None
        raise DataError(f"cannot write to {folder} ({error.strerror}): choose another folder") from None
    with lock:
        if not _has_locked(lock):
            raise DataError(f"{folder} is being packed by another process: wait for it or choose another folder")
        try:
            if is_complete(folder):
                raise DataError(f"{folder} holds a dataset already, which another process has just packed")
            yield work
        except BaseException as error:
            if not any(any(work.glob(name)) for name in ("*.tar", "scan-*.arrow", _PUBLISHING_FILE)):
                shutil.rmtree(work, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in _FULL_DISK:
                raise _full(folder) from error
            raise
        shutil.rmtree(work, ignore_errors=True)


def remove_leftover(folder: Path) -> None:
    """Delete the folder of work that a process left which was killed when its dataset was complete."""
    work = folder / _WORK
    if not work.is_dir():
        return
    try:
        with (work / _LOCK_FILE).open("w") as lock:
            if _has_locked(lock):
                shutil.rmtree(work, ignore_errors=True)
    except OSError:  # somebody else's, who may only read: it does no harm
        return


def begin(work: Path, request: Mapping[str, Any]) -> None:
    """Keep what the same packing has left in ``work``, delete what another has.

    Args:
        work: the folder.
        request: what decides the bytes of the dataset, as far as it is known before the source is opened.
    """
    old = _read_json(work / _REQUEST_FILE)
    if any(old.get(name) != request[name] for name in ("source", "options")):
        # What one source has unpacked, another might take for its own.
        shutil.rmtree(work / SCRATCH, ignore_errors=True)
        (work / SCRATCH).mkdir()
    if {name: value for name, value in old.items() if name != "digest"} != request:
        _restart(work, request)


def continue_or_restart(work: Path, request: Mapping[str, Any], digest: str) -> None:
    """Keep the finished shards if they are of the same list, else delete them.

    Args:
        work: the folder.
        request: as for ``begin``.
        digest: of the list.
    """
    if _read_json(work / _REQUEST_FILE).get("digest") != digest:
        _restart(work, {**request, "digest": digest})


def _restart(work: Path, request: Mapping[str, Any]) -> None:
    for pattern in ("*.tar", "*.tar.npz", "scan-*.arrow"):
        for leftover in work.glob(pattern):
            leftover.unlink()
    _write_json(work / _REQUEST_FILE, request)


def publish(work: Path, folder: Path, shards: Sequence[str]) -> None:
    """Move a finished dataset into place, the index last: with it the dataset counts as complete.

    Shards are deleted that another packing had moved before it was cut off, and that are none of this dataset.
    """
    earlier = _read_json(work / _PUBLISHING_FILE)
    if shards:  # an index of shards that are elsewhere deletes none
        for name in set(earlier.get("shards", ())) - set(shards):
            (folder / name).unlink(missing_ok=True)
    _write_json(work / _PUBLISHING_FILE, {"request": _read_json(work / _REQUEST_FILE), "shards": list(shards)})
    _move(work, folder, shards)


def finish_publishing(work: Path, folder: Path, request: Mapping[str, Any]) -> bool:
    """Move the rest of a dataset of the same packing that was cut off while it was moved; whether there was one."""
    earlier = _read_json(work / _PUBLISHING_FILE)
    if not earlier:
        return False
    names = (*earlier["shards"], *TABLE_FILES)
    is_whole = all((work / name).is_file() or (folder / name).is_file() for name in names)
    if is_whole and {name: value for name, value in earlier["request"].items() if name != "digest"} == request:
        _move(work, folder, earlier["shards"])
        return True
    # From here on the tables in the folder of work may be others, or half: only which shards were moved still holds.
    _write_json(work / _PUBLISHING_FILE, {"request": {}, "shards": earlier["shards"]})
    return False


def _move(work: Path, folder: Path, shards: Sequence[str]) -> None:
    for name in (REJECTS_FILE, DUPLICATES_FILE, *shards, *TABLE_FILES):
        if (work / name).is_file():
            (work / name).replace(folder / name)


def _has_locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(lock.fileno()).st_nlink > 0  # else another has finished since, and deleted the folder


def _read_json(path: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none, or one that was cut off."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True))
    partial.replace(path)


def _full(folder: Path) -> DataError:
    return DataError(f"no space left in {folder}: free some and run the same again; finished shards are kept")
