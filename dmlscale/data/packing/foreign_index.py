"""An index over shards that others have made; they stay where they are."""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dmlscale.data.decoding.check import check_bytes
from dmlscale.data.errors import DataError
from dmlscale.data.layout import REJECTS_FILE
from dmlscale.data.packing.foreign_shards import ScannedSample, scan_shard
from dmlscale.data.packing.index_tables import describe
from dmlscale.data.packing.index_writer import IndexWriter, write_classes, write_shard_table, write_table
from dmlscale.data.packing.writing import PackOptions, Progress
from dmlscale.data.prefetch import Prefetcher
from dmlscale.data.sources import TRAIN_SPLIT, ShardSource
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
_REPEATED = "its key comes in an earlier shard, whose sample is kept"
_NUMBERS = ("offset", "size", "num_parts", "content_hash")


class _Scanned(NamedTuple):
    """One shard that was looked through."""

    location: str
    split: str
    size_bytes: int
    table: Path  # of its samples
    rejects: list[tuple[str, str]]  # key, reason


def index_shards(
    source: ShardSource, work: Path, request: Mapping[str, Any], options: PackOptions, progress: Progress | None
) -> None:
    """Read every shard once, in processes, and write the tables of a dataset into ``work``.

    Raises:
        DataError: a shard cannot be had, is compressed, or holds a reject and ``options.strict``; or no sample is left.
    """
    locations = source.locations()
    scan = partial(_scan, source=source, work=work, check=options.check)
    pool = ProcessPoolExecutor(
        options.num_processes or len(os.sched_getaffinity(0)), multiprocessing.get_context("spawn")
    )
    scanned = []
    try:
        with closing(Prefetcher(scan, iter(enumerate(locations)), pool=pool, depth=4)) as results:
            for result in results:
                if options.strict and result.rejects:
                    key, reason = result.rejects[0]
                    raise DataError(f"shard {result.location}, sample {key!r}: {reason}")
                scanned.append(result)
                if progress is not None:
                    progress(len(scanned), len(locations))
    except BrokenProcessPool:
        raise DataError("a process died that looked through shards (out of memory?): set num_processes=1") from None
    _write_tables(scanned, work, request)


def _scan(numbered: tuple[int, tuple[str, str]], source: ShardSource, work: Path, check: bool) -> _Scanned:
    number, (location, split) = numbered
    storage = Storage.open(work)
    cache = ShardCache(default_cache_folder(), DEFAULT_CACHE_BYTES)
    rows: list[ScannedSample] = []
    rejects = []
    with cache.open(storage, location) as file:
        for found in scan_shard(file, source.scan(partial(check_bytes, source.input) if check else None)):
            if isinstance(found, ScannedSample):
                rows.append(found)
            else:
                rejects.append((found.key, found.reason))
        size_bytes = file.seek(0, os.SEEK_END)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    table = work / f"scan-{number:06d}.arrow"
    write_table(table, pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
    return _Scanned(location, split, size_bytes, table, rejects)


@dataclass
class _Classes:
    """Names by label, and which label each name has."""

    names: list[str]
    num_train: int

    @classmethod
    def of(cls, scanned: list[_Scanned]) -> _Classes:
        by_split: dict[str, set[str]] = {}
        for shard in scanned:
            found = pc.unique(_read(shard.table).column("class_name")).to_pylist()
            by_split.setdefault(shard.split, set()).update(found)
        in_train = by_split.get(TRAIN_SPLIT, set())
        others = set().union(*by_split.values()) - in_train
        return cls([*sorted(in_train), *sorted(others)], len(in_train))


def _write_tables(scanned: list[_Scanned], work: Path, request: Mapping[str, Any]) -> None:
    classes = _Classes.of(scanned)
    splits = sorted({shard.split for shard in scanned}, key=lambda name: (name != TRAIN_SPLIT, name))
    extensions = sorted({e for shard in scanned for e in pc.unique(_read(shard.table).column("extension")).to_pylist()})
    # The rows of a split lie together in the index, so that opening it copies nothing.
    scanned = sorted(scanned, key=lambda shard: splits.index(shard.split))
    reasons: Counter[str] = Counter()
    shards: list[tuple[str, int, int]] = []
    repeated = _Repeated()
    names = pa.array(classes.names, pa.string())
    with (
        (work / REJECTS_FILE).open("w", newline="") as file,
        IndexWriter(work, splits, extensions) as index,
    ):
        writer = csv.writer(file)
        writer.writerow(("key", "split", "class_name", "source", "reason"))
        for shard in scanned:
            table = _read(shard.table)
            is_new = repeated.check(table.column("key").to_pylist())
            rejects = [*shard.rejects, *((key.as_py(), _REPEATED) for key in table.column("key").filter(~is_new))]
            writer.writerows((key, shard.split, "", shard.location, reason) for key, reason in rejects)
            reasons.update(reason for _, reason in rejects)
            table = table.filter(pa.array(is_new))
            if not table.num_rows:
                continue
            columns = {name: table.column(name).to_numpy() for name in _NUMBERS}
            columns["label"] = pc.index_in(table.column("class_name"), names).to_numpy()
            columns["extension"] = pc.index_in(table.column("extension"), pa.array(extensions)).to_numpy()
            columns["shard"] = np.full(table.num_rows, len(shards))
            columns["split"] = np.full(table.num_rows, splits.index(shard.split))
            index.append(table.column("key").to_pylist(), columns)
            shards.append((shard.location, shard.size_bytes, table.num_rows))
        if not shards:
            reason = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(3))
            raise DataError(f"none of {len(scanned)} shards holds a sample that can be used: {reason}")
        index.finish(len(classes.names))
    write_classes(work, classes.names, [""] * len(classes.names))
    write_shard_table(work, *zip(*shards, strict=True))
    describe(work, request, tuple(splits), len(classes.names), classes.num_train, reasons)


def _read(path: Path) -> pa.RecordBatch:
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


class _Repeated:
    """Keys that came before, by a hash of 64 bits each."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def check(self, keys: list[str]) -> np.ndarray:
        """(m,) whether a key is new."""
        is_new = np.ones(len(keys), bool)
        for n, key in enumerate(keys):
            number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
            is_new[n] = number not in self._seen
            self._seen.add(number)
        return is_new
