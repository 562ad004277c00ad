"""Pack a source: WebDataset shards, an index over them, and a description."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from dmlscale.data.errors import DataError
from dmlscale.data.layout import (
    DUPLICATES_FILE,
    REJECTS_FILE,
    TABLE_FILES,
    is_complete,
    read_description,
    source_options,
)
from dmlscale.data.packing.foreign_index import index_shards
from dmlscale.data.packing.index_tables import finish_tables
from dmlscale.data.packing.item_table import write_items
from dmlscale.data.packing.summary import PackSummary
from dmlscale.data.packing.writing import SCRATCH, PackOptions, Progress, write_shards
from dmlscale.data.sources import SOURCES, ShardSource, Source

_WORK = ".packing"  # folder of what is not finished, in the dataset's folder
_REQUEST_FILE = "request.json"
_LOCK_FILE = "lock"


def ensure_packed(
    source: Source | ShardSource,
    out_dir: str | Path,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
) -> PackSummary:
    """The dataset in ``out_dir``; packed now unless it is there, from the same source and options.

    Raises:
        DataError: ``out_dir`` holds a dataset of another source or of other options; or as `pack` does.
    """
    folder = _local(out_dir)
    wanted = _request(source, options or PackOptions())
    description = read_description(folder) if is_complete(folder) else None
    if description is None:
        return pack(source, folder, options, progress=progress)
    packed = {name: description.get(name) for name in wanted}
    if packed != wanted:
        name, old, new = _first_difference(packed, wanted)
        raise DataError(
            f"{folder} was packed with {name}={old!r}, now asked for {new!r}: choose another folder or delete this one"
        )
    return PackSummary.of(folder, description, is_reused=True)


def pack(
    source: Source | ShardSource,
    out_dir: str | Path,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
) -> PackSummary:
    """Write every sample of ``source`` into shards under ``out_dir``.

    A shard holds short runs of one class, in random class order: whoever reads it from front to back meets
    many classes, several samples of each. Labels are 0..C-1, the classes of "train" first, by name. The same
    source and options give the same bytes, whatever the number of processes. A dataset appears under ``out_dir`` only
    when it is complete; a packing that was cut off goes on after its last finished shard.

    Args:
        source: what to pack.
        out_dir: folder of the dataset; made if missing.
        options: how to pack.
        progress: called with the number of samples done, and of all.

    Raises:
        DataError: the folder cannot be written or holds a dataset; the source lists no sample or an impossible one, or
            none that can be read.
    """
    options = options or PackOptions()
    folder = _local(out_dir)
    request = _request(source, options)
    if is_complete(folder):
        raise DataError(f"{folder} holds a dataset already: choose another folder or delete it")
    with _work_folder(folder) as work:
        if isinstance(source, ShardSource):
            index_shards(source, work, request, options, progress)
            shards: list[str] = []
        else:
            opened = source.open(work / SCRATCH)
            table = write_items(opened.items(), work / "items.arrow")
            _continue_or_restart(work, {**request, "digest": table.digest})
            records = write_shards(source, table, work, options, progress)
            shards = finish_tables(work, request, table, records)
        description = read_description(work)
        _publish(work, folder, shards)
    assert description is not None
    return PackSummary.of(folder, description, is_reused=False)


def _local(out_dir: str | Path) -> Path:
    if "://" in str(out_dir):
        raise DataError(f"cannot pack into {out_dir}: pack into a folder of this machine and upload it")
    return Path(out_dir)


def _request(source: Source | ShardSource, options: PackOptions) -> dict[str, Any]:
    """What decides the bytes of a dataset; part of its description."""
    return {
        "source": next((name for name, cls in SOURCES.items() if cls is type(source)), type(source).__name__),
        "options": source_options(source),
        "packing": {f.name: getattr(options, f.name) for f in fields(options) if f.compare},
        "input": source.input,
    }


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any]:
    """Dotted name and both values of the first entry in which two descriptions differ."""
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            return _first_difference(before, after, f"{prefix}{name}.")
        return f"{prefix}{name}", before, after
    raise AssertionError("called with equal descriptions")


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A locked folder inside ``folder``: on the same file system, and shows early that it is writable.

    Deleted at the end, unless an error leaves finished shards in it, with which the same packing goes on.
    """
    work = folder / _WORK
    try:
        (work / SCRATCH).mkdir(parents=True, exist_ok=True)
        lock = (work / _LOCK_FILE).open("w")
    except OSError as error:
        raise DataError(f"cannot write to {folder} ({error.strerror}): choose another folder") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(lock.fileno()).st_nlink:  # the other has finished since, and deleted the folder
                raise BlockingIOError
        except OSError:
            raise DataError(
                f"{folder} is being packed by another process: wait for it or choose another folder"
            ) from None
        try:
            if is_complete(folder):
                raise DataError(f"{folder} holds a dataset already, which another process has just packed")
            yield work
        except BaseException:
            if not any(work.glob("*.tar")):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def _continue_or_restart(work: Path, request: dict[str, Any]) -> None:
    """Keep the finished shards of the same packing, delete those of another."""
    path = work / _REQUEST_FILE
    text = json.dumps(request, indent=2, sort_keys=True)
    if not path.is_file() or path.read_text() != text:
        for leftover in (*work.glob("*.tar"), *work.glob("*.tar.npz")):
            leftover.unlink()
        path.write_text(text)


def _publish(work: Path, folder: Path, shards: list[str]) -> None:
    """Move a finished dataset into place, the index last: with it the dataset counts as complete."""
    for name in (REJECTS_FILE, DUPLICATES_FILE, *shards, *TABLE_FILES):
        (work / name).replace(folder / name)
