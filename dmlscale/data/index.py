"""The index of a packed dataset: which samples there are, of which class, and where their bytes lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.layout import INDEX_FILE, INDEX_SCHEMA, read_description
from dmlscale.data.sources import TRAIN_SPLIT


class Columns(NamedTuple):
    """All rows of an index, one entry per sample; shared by every view."""

    keys: pa.ChunkedArray
    shards: NDArray[np.int32]  # positions in Index.shard_names
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    splits: NDArray[np.int32]  # positions in Index.splits


@dataclass(frozen=True, eq=False)
class Index:
    """A packed dataset, or a view of some of its rows.

    Row ids, labels and ``num_classes`` are those of the whole dataset in every view, so a sample or a class
    has one number everywhere.
    """

    root: Path
    columns: Columns
    row_ids: NDArray[np.int64]  # (n,) of the rows in this view
    class_names: tuple[str, ...]  # by label, over all splits
    splits: tuple[str, ...]
    shard_names: tuple[str, ...]
    num_classes: int  # of the split "train": labels 0..num_classes-1, one row of a class bank each
    description: Mapping[str, Any]  # what dataset.json says

    @classmethod
    def load(cls, path: str | Path) -> Index:
        """Open the dataset in folder ``path`` and check that its shards hold what the index says.

        Raises:
            DataError: no dataset there, or it is damaged.
        """
        root = Path(path)
        description = read_description(root)
        if description is None or not (root / INDEX_FILE).is_file():
            raise DataError(f"no dataset at {root} (it needs {INDEX_FILE} and dataset.json): run `dmlscale pack` first")
        table = _read_table(root / INDEX_FILE)
        shards, splits = (table[name].combine_chunks() for name in ("shard", "split"))
        columns = Columns(
            keys=table["key"],
            shards=shards.indices.to_numpy(),
            offsets=table["offset"].to_numpy(),
            sizes=table["size"].to_numpy(),
            labels=table["label"].to_numpy(),
            splits=splits.indices.to_numpy(),
        )
        split_names = tuple(splits.dictionary.to_pylist())
        shard_names = tuple(shards.dictionary.to_pylist())
        class_names = _class_names(root / INDEX_FILE, table)
        _check_keys(root / INDEX_FILE, columns.keys)
        _check_shards(root, shard_names, columns)
        train_code = split_names.index(TRAIN_SPLIT) if TRAIN_SPLIT in split_names else -1
        train_labels = columns.labels[columns.splits == train_code]
        return cls(
            root=root,
            columns=columns,
            row_ids=np.arange(table.num_rows),
            class_names=class_names,
            splits=split_names,
            shard_names=shard_names,
            num_classes=_num_classes(root / INDEX_FILE, train_labels),
            description=description,
        )

    def __len__(self) -> int:
        return len(self.row_ids)

    def split(self, name: str) -> Index:
        """The rows of one split.

        Raises:
            DataError: there is no such split.
        """
        if name not in self.splits:
            raise DataError(f"no split {name!r} in {self.root} (there are: {', '.join(self.splits)})")
        selected = self.columns.splits[self.row_ids] == self.splits.index(name)
        return replace(self, row_ids=self.row_ids[selected])

    def take(self, positions: NDArray[np.int64]) -> Index:
        """The rows at ``positions`` of this view."""
        return replace(self, row_ids=self.row_ids[positions])

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(n,) global class ids."""
        return self.columns.labels[self.row_ids]

    def key(self, row_id: int) -> str:
        """The key of one row, as in the shard."""
        return self.columns.keys[row_id].as_py()

    def shard_path(self, row_id: int) -> Path:
        """The shard that holds one row."""
        return self.root / self.shard_names[self.columns.shards[row_id]]


def _read_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): delete {path.parent} and pack the dataset again") from None
    missing = [name for name in INDEX_SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r} (it has: {', '.join(table.column_names)})")
    try:
        table = table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path} has a column of the wrong type: {error}") from None
    for name in INDEX_SCHEMA.names:
        if table[name].null_count:
            raise DataError(f"{path}: column {name!r} is empty in {table[name].null_count} rows")
    if not table.num_rows:
        raise DataError(f"{path} lists no samples: pack the dataset again")
    return table.unify_dictionaries()


def _class_names(path: Path, table: pa.Table) -> tuple[str, ...]:
    """Names by label; labels must be 0..C-1, each with one name."""
    classes = table.group_by(["label", "class_name"]).aggregate([]).sort_by("label")
    labels = classes["label"].to_numpy()
    if labels[0] < 0 or labels[-1] >= len(labels) or len(np.unique(labels)) != len(labels):
        unexpected = np.setdiff1d(labels, np.arange(len(labels)))
        what = f"label {unexpected[0]} is outside" if len(unexpected) else "a label has two class names, outside"
        raise DataError(f"{path}: {what} 0..{len(labels) - 1} for its {len(labels)} classes: pack the dataset again")
    return tuple(classes["class_name"].to_pylist())


def _num_classes(path: Path, train_labels: NDArray[np.int64]) -> int:
    if not len(train_labels):
        return 0
    present = np.bincount(train_labels) > 0
    if not present.all():
        raise DataError(
            f"{path}: label {int(np.argmin(present))} has no sample in split {TRAIN_SPLIT!r}, whose labels "
            f"must be 0..C-1 without a gap: pack the dataset again"
        )
    return len(present)


def _check_keys(path: Path, keys: pa.ChunkedArray) -> None:
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = pc.value_counts(keys)
    twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
    raise DataError(f"{path}: key {twice!r} is listed more than once: keys must be unique")


def _check_shards(root: Path, shard_names: tuple[str, ...], columns: Columns) -> None:
    """Every shard is there and long enough for the samples it should hold."""
    ends = np.zeros(len(shard_names), np.int64)
    np.maximum.at(ends, columns.shards, columns.offsets + columns.sizes)
    for name, end in zip(shard_names, ends.tolist(), strict=True):
        path = root / name
        if not path.is_file():
            raise DataError(f"shard {path} is missing: restore it, or delete {root} and pack the dataset again")
        size = path.stat().st_size
        if size < end:
            what = "is empty (0 bytes)" if size == 0 else f"is truncated ({size} bytes, the index needs {end})"
            raise DataError(f"shard {path} {what}: restore it, or delete {root} and pack the dataset again")
