"""An index over shards that others have made; they stay where they are."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.layout import REJECTS_FILE
from dmlscale.data.packing.foreign_scan import ShardScan, scan_shards
from dmlscale.data.packing.index_tables import describe
from dmlscale.data.packing.index_writer import IndexWriter, write_classes, write_shard_table
from dmlscale.data.packing.numbered_keys import key_hash
from dmlscale.data.packing.writing import PackOptions, Progress
from dmlscale.data.sources import TRAIN_SPLIT, ShardSource

_REPEATED = "its key comes in an earlier shard, whose sample is kept"
_NUMBERS = ("offset", "size", "num_parts", "content_hash")


def index_shards(
    source: ShardSource, work: Path, request: Mapping[str, Any], options: PackOptions, progress: Progress | None
) -> None:
    """Read every shard once, in processes, and write the tables of a dataset into ``work``.

    Raises:
        DataError: a shard cannot be had, is compressed, or holds a reject and ``options.strict``; or no sample of a
            split is left.
    """
    locations = source.locations()
    scans = []
    for scan in scan_shards(source, locations, work, options):
        if options.strict:
            _refuse_any(scan, scan.rejects())
        scans.append(scan)
        if progress is not None:
            progress(len(scans), len(locations))
    _write_tables(scans, work, request, options)


@dataclass
class _Classes:
    """Names by label, and which label each name has."""

    names: list[str]
    num_train: int

    @classmethod
    def of(cls, scans: list[ShardScan]) -> _Classes:
        by_split: dict[str, set[str]] = {}
        for scan in scans:
            by_split.setdefault(scan.split, set()).update(pc.unique(scan.samples().column("class_name")).to_pylist())
        in_train = by_split.get(TRAIN_SPLIT, set())
        others = set().union(*by_split.values()) - in_train
        return cls([*sorted(in_train), *sorted(others)], len(in_train))


def _write_tables(scans: list[ShardScan], work: Path, request: Mapping[str, Any], options: PackOptions) -> None:
    classes = _Classes.of(scans)
    splits = sorted({scan.split for scan in scans}, key=lambda name: (name != TRAIN_SPLIT, name))
    extensions = sorted({e for scan in scans for e in pc.unique(scan.samples().column("extension")).to_pylist()})
    # The rows of a split lie together in the index, so that opening it copies nothing.
    scans = sorted(scans, key=lambda scan: splits.index(scan.split))
    reasons = {split: Counter[str]() for split in splits}
    num_samples: Counter[str] = Counter()
    shards: list[tuple[str, int, int]] = []
    index_keys = _IndexKeys()
    names = pa.array(classes.names, pa.string())
    with (
        (work / REJECTS_FILE).open("w", newline="") as file,
        IndexWriter(work, splits, extensions) as index,
    ):
        writer = csv.writer(file)
        writer.writerow(("key", "split", "class_name", "source", "reason"))
        for scan in scans:
            table = scan.samples()
            keys, is_new = index_keys.add(scan.split, table.column("key").to_pylist())
            repeated = [(key.as_py(), _REPEATED) for key in table.column("key").filter(pa.array(~is_new))]
            if options.strict:
                _refuse_any(scan, repeated)
            rejects = [*scan.rejects(), *repeated]
            writer.writerows((key, scan.split, "", scan.location, reason) for key, reason in rejects)
            reasons[scan.split].update(reason for _, reason in rejects)
            table = table.filter(pa.array(is_new))
            if not table.num_rows:
                continue
            columns = {name: table.column(name).to_numpy() for name in _NUMBERS}
            columns["label"] = pc.index_in(table.column("class_name"), names).to_numpy()
            columns["extension"] = pc.index_in(table.column("extension"), pa.array(extensions)).to_numpy()
            columns["shard"] = np.full(table.num_rows, len(shards))
            columns["split"] = np.full(table.num_rows, splits.index(scan.split))
            index.append(keys, columns)
            shards.append((scan.location, scan.size_bytes, table.num_rows))
            num_samples[scan.split] += table.num_rows
        for split in splits:
            if not num_samples[split]:
                count = sum(scan.split == split for scan in scans)
                most = "; ".join(f"{number:,} x {reason}" for reason, number in reasons[split].most_common(3))
                raise DataError(f"none of {count} shards of split {split!r} holds a sample that can be used: {most}")
        index.finish(len(classes.names))
    write_classes(work, classes.names, [""] * len(classes.names))
    write_shard_table(work, *zip(*shards, strict=True))
    describe(work, request, tuple(splits), len(classes.names), classes.num_train, sum(reasons.values(), Counter[str]()))


def _refuse_any(scan: ShardScan, rejects: Sequence[tuple[str, str]]) -> None:
    for key, reason in rejects:
        raise DataError(f"shard {scan.location}, sample {key!r}: {reason}")


class _IndexKeys:
    """Keys of samples in the index, by a hash of 64 bits each.

    Shards of several splits often count from 0 each. So keys are compared within a split, and where an earlier split
    has a key too, that in the index begins with the split: "test/000000".
    """

    def __init__(self) -> None:
        self._split = ""
        self._of_split: set[int] = set()
        self._of_earlier: set[int] = set()

    def add(self, split: str, keys: Sequence[str]) -> tuple[list[str], NDArray[np.bool_]]:
        """Add the keys (m,) of a shard; those of a split follow each other.

        Returns:
            The keys that are new, as in the index, and (m,) which ones they are of.
        """
        if split != self._split:
            self._of_earlier |= self._of_split
            self._split, self._of_split = split, set()
        taken = [self._take(split, key) for key in keys]
        return [key for key in taken if key is not None], np.array([key is not None for key in taken], bool)

    def _take(self, split: str, key: str) -> str | None:
        number = key_hash(key)
        if number in self._of_split:
            return None
        self._of_split.add(number)
        if number not in self._of_earlier:
            return key
        key = f"{split}/{key}"
        number = key_hash(key)
        if number in self._of_split or number in self._of_earlier:
            return None
        self._of_split.add(number)
        return key
