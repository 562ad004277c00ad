"""Look through shards that others have made, in processes; what was found in a shard survives a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dmlscale.data.child_processes import process_pool
from dmlscale.data.decoding.check import check_bytes
from dmlscale.data.errors import DataError
from dmlscale.data.originals.scratch_names import file_stamp
from dmlscale.data.packing.foreign_shards import ScannedSample, scan_shard
from dmlscale.data.packing.index_writer import write_table
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.prefetch import Prefetcher
from dmlscale.data.sources import ShardSource
from dmlscale.data.storage.cache import DEFAULT_CACHE_BYTES, ShardCache, default_cache_folder
from dmlscale.data.storage.storage import Storage

_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("num_parts", pa.int16()),
        ("extension", pa.string()),
        ("class_name", pa.string()),
        ("content_hash", pa.uint64()),
    ]
)
_FACTS = b"scan"  # in the metadata of a table: where it is from, and what was rejected


class _Task(NamedTuple):
    location: str
    split: str
    table: Path  # for its samples


@dataclass(frozen=True)
class ShardScan:
    """What is known of one shard; its samples are in a mapped file."""

    location: str
    split: str
    stamp: str  # of the file, if it is on this machine
    size_bytes: int
    table: Path

    def samples(self) -> pa.RecordBatch:
        """Key, place, extension, class and content hash of each sample."""
        return _open(self.table).get_batch(0)

    def rejects(self) -> list[tuple[str, str]]:
        """Key and reason of each."""
        return [(key, reason) for key, reason in _facts(self.table)["rejects"]]


def scan_shards(
    source: ShardSource, locations: Sequence[tuple[str, str]], work: Path, options: PackOptions
) -> Iterator[ShardScan]:
    """Read every shard once, except those whose scan is in ``work`` already.

    Args:
        source: that tells what to look for.
        locations: path or URL, and split, of each shard.
        work: folder for what was found; holds nothing of another source or of other options.
        options: how to pack.

    Yields:
        A scan for each shard, in their order.

    Raises:
        DataError: a shard cannot be had or is compressed, or a process died.
    """
    tasks = [_Task(*location, work / f"scan-{number:06d}.arrow") for number, location in enumerate(locations)]
    count = min(options.num_processes or len(os.sched_getaffinity(0)), len(tasks))
    pool: Executor = ThreadPoolExecutor(1) if count == 1 else process_pool(count)
    depth = 1 if count == 1 else 2 * count
    scan = partial(_scan, source=source, check=options.check)
    try:
        with closing(Prefetcher(scan, iter(tasks), pool=pool, depth=depth)) as scans:
            yield from scans
    except BrokenProcessPool:
        raise DataError(
            "a process died that looked through shards (out of memory, or started from a script without "
            "`if __name__ == '__main__':`): run the same again with num_processes=1, it goes on"
        ) from None


def _scan(task: _Task, source: ShardSource, check: bool) -> ShardScan:
    storage = Storage.open(task.table.parent)
    stamp = _stamp(storage, task.location)
    if (found := _found_before(task, stamp)) is not None:
        return found
    rows: list[ScannedSample] = []
    rejects = []
    cache = ShardCache(default_cache_folder(), DEFAULT_CACHE_BYTES)
    with cache.open(storage, task.location) as file:
        try:
            for entry in scan_shard(file, source.scan(partial(check_bytes, source.input) if check else None)):
                if isinstance(entry, ScannedSample):
                    rows.append(entry)
                else:
                    rejects.append((entry.key, entry.reason))
            size_bytes = file.seek(0, os.SEEK_END)
        except OSError as error:
            raise _unreadable(task.location, error) from None
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    facts: dict[str, Any] = {"location": task.location, "split": task.split, "stamp": stamp, "size_bytes": size_bytes}
    schema = _SCHEMA.with_metadata({_FACTS: json.dumps({**facts, "rejects": rejects})})
    unfinished = task.table.with_name(f"{task.table.name}.partial")
    write_table(unfinished, pa.RecordBatch.from_arrays(arrays, schema=schema))
    unfinished.replace(task.table)
    return ShardScan(**facts, table=task.table)


def _stamp(storage: Storage, location: str) -> str:
    if not storage.holds_locally(location):
        return ""
    try:
        return file_stamp(storage.local_path(location))
    except OSError as error:
        raise _unreadable(location, error) from None


def _unreadable(location: str, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError(f"shard {location} cannot be read ({reason}): run the same again when it can be")


def _found_before(task: _Task, stamp: str) -> ShardScan | None:
    """What a packing that was cut off has found in a shard, if the shard is still the same."""
    if not task.table.is_file():
        return None
    facts = _facts(task.table)
    facts.pop("rejects")
    found = ShardScan(**facts, table=task.table)
    return found if (found.location, found.split, found.stamp) == (task.location, task.split, stamp) else None


def _open(table: Path) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(table)))


def _facts(table: Path) -> dict[str, Any]:
    return json.loads(_open(table).schema.metadata[_FACTS])
