"""From the records of finished shards to the tables of a dataset."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dmlscale.data.errors import DataError
from dmlscale.data.layout import DUPLICATES_FILE, FORMAT_VERSION, INDEX_FILE, REJECTS_FILE, write_description
from dmlscale.data.packing.index_writer import IndexWriter, write_classes, write_shard_table
from dmlscale.data.packing.item_table import ItemTable
from dmlscale.data.packing.writing import ShardRecord
from dmlscale.data.statistics import as_json, class_counts, duplicates, split_statistics
from dmlscale.data.version import content_digest, dataset_version
from dmlscale.redaction import shown

_REASONS = 20  # that the description tells; all are in rejects.csv
REPEATED = "its key comes twice: the first sample is kept"


def finish_tables(
    folder: Path, request: Mapping[str, Any], table: ItemTable, records: Iterable[ShardRecord]
) -> list[str]:
    """Write index, classes, shards, rejects, duplicates and description into ``folder``.

    Args:
        folder: that holds the shards.
        request: what decides the bytes of the dataset.
        table: of the listed samples.
        records: of the shards, in their order; may write them as it goes.

    Returns:
        The names of the shards.

    Raises:
        DataError: no sample is left.
    """
    shards: list[tuple[str, int, int]] = []
    with (
        (folder / REJECTS_FILE).open("w", newline="") as file,
        IndexWriter(folder, table.split_names, table.extension_names) as index,
    ):
        rejects = _Rejects(file, table)
        rejects.copy(table.defective)
        for position in table.repeated.tolist():
            rejects.add(position, REPEATED)
        for record in records:
            for reject in record.rejects:
                rejects.add(*reject)
            positions = record.numbers["positions"]
            if not len(positions):  # every sample of it was rejected
                (folder / record.name).unlink(missing_ok=True)  # gone already if this was cut off before
                continue
            index.append(
                table.keys(positions),
                {
                    "shard": np.full(len(positions), len(shards)),
                    "offset": record.numbers["offsets"],
                    "size": record.numbers["sizes"],
                    "num_parts": record.numbers["num_parts"],
                    "extension": table.extensions[positions],
                    "label": table.labels[positions],
                    "split": np.full(len(positions), record.split),
                    "content_hash": record.numbers["content_hashes"].view(np.uint64),
                },
            )
            shards.append((record.name, record.size_bytes, len(positions)))
        if not shards:
            raise DataError(f"none of the {len(table):,} listed samples can be packed: {rejects.most_common()}")
        index.finish(len(table.class_names))
    write_classes(folder, table.class_names, table.super_classes)
    write_shard_table(folder, *zip(*shards, strict=True))
    describe(
        folder,
        request,
        table.split_names,
        len(table.class_names),
        table.num_train_classes,
        rejects.reasons,
        num_ambiguous_classes=table.num_ambiguous_classes,
    )
    return [name for name, _, _ in shards]


def describe(
    folder: Path,
    request: Mapping[str, Any],
    split_names: tuple[str, ...],
    num_classes: int,
    num_train_classes: int,
    rejects: Counter[str],
    *,
    num_ambiguous_classes: int = 0,
) -> None:
    """Count what the index in ``folder`` holds, and write ``duplicates.csv`` and ``dataset.json``."""
    with pa.memory_map(str(folder / INDEX_FILE)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
        hashes = batch.column("content_hash").to_numpy()
        splits, labels = batch.column("split").indices.to_numpy(), batch.column("label").to_numpy()
        later, first = duplicates(hashes)
        across = splits[later] != splits[first]
        _write_duplicates(folder, batch.column("key"), later, first, split_names, splits)
        counts = class_counts(splits, labels, len(split_names), num_classes)
        description = {
            "format_version": FORMAT_VERSION,
            **request,
            "splits": as_json(
                split_statistics(splits, labels, batch.column("size").to_numpy(), split_names, num_classes)
            ),
            "num_classes": num_classes,
            "num_train_classes": num_train_classes,
            "num_empty_classes": int((counts.sum(axis=0) == 0).sum()),
            "num_ambiguous_classes": num_ambiguous_classes,
            "num_shards": int(batch.column("shard")[-1].as_py()) + 1,
            "num_rejects": rejects.total(),
            "rejects": dict(rejects.most_common(_REASONS)),
            "num_duplicates": len(later),
            "num_duplicates_across_splits": int(across.sum()),
            "content_hash": content_digest(hashes),
            "version": dataset_version(folder, hashes, splits, labels),
        }
    write_description(folder, description)


def _write_duplicates(
    folder: Path,
    keys: pa.Array,
    later: np.ndarray,
    first: np.ndarray,
    split_names: tuple[str, ...],
    splits: np.ndarray,
) -> None:
    with (folder / DUPLICATES_FILE).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("key", "split", "same_as", "same_as_split"))
        for row, original in zip(later.tolist(), first.tolist(), strict=True):
            names = (split_names[splits[row]], split_names[splits[original]])
            writer.writerow((keys[row].as_py(), names[0], keys[original].as_py(), names[1]))


class _Rejects:
    """Writes ``rejects.csv`` and counts reasons."""

    def __init__(self, file: Any, table: ItemTable) -> None:
        self._writer = csv.writer(file)
        self._writer.writerow(("key", "split", "class_name", "source", "reason"))
        self._table = table
        self.reasons: Counter[str] = Counter()

    def add(self, position: int, reason: str) -> None:
        (sample,) = self._table.samples(np.array([position]))
        split = self._table.split_names[self._table.splits[position]]
        self._writer.writerow((sample.key, split, self._table.class_names[sample.label], shown(sample.ref), reason))
        self.reasons[reason] += 1

    def copy(self, path: Path) -> None:
        """Rows that were written before."""
        with path.open(newline="") as file:
            for row in csv.reader(file):
                self._writer.writerow(row)
                self.reasons[row[-1]] += 1

    def most_common(self) -> str:
        return "; ".join(f"{count:,} x {reason}" for reason, count in self.reasons.most_common(3))
