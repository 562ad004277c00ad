"""The index of a packed dataset: which samples there are, of which class, and where their bytes lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.layout import (
    CLASSES_FILE,
    CLASSES_SCHEMA,
    INDEX_FILE,
    INDEX_SCHEMA,
    SHARDS_FILE,
    SHARDS_SCHEMA,
    read_description,
)
from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.planning.windows import ShardRows
from dmlscale.data.shard_names import check_shard_names
from dmlscale.data.statistics import class_counts
from dmlscale.data.storage.cache import DEFAULT_CACHE_BYTES, ShardCache, default_cache_folder
from dmlscale.data.storage.storage import Storage
from dmlscale.data.tables import discard_tables, map_table, tables_of
from dmlscale.data.version import dataset_version


class Columns(NamedTuple):
    """All rows of an index, one entry per sample, mapped from its file; shared by every view."""

    keys: pa.LargeStringArray
    shards: NDArray[np.int32]  # positions in Index.shards
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    num_parts: NDArray[np.int16]
    extensions: NDArray[np.int8]  # positions in Index.extensions
    labels: NDArray[np.int32]
    splits: NDArray[np.int8]  # positions in Index.splits
    hashes: NDArray[np.uint64]
    by_class: NDArray[np.int64]  # row numbers sorted by split, label, row


class Shards(NamedTuple):
    """All shards of a dataset, in the order of the index."""

    names: tuple[str, ...]  # relative to the dataset, or a path or URL of their own
    sizes: NDArray[np.int64]  # bytes
    first_rows: NDArray[np.int64]  # (shards + 1,) shard s holds the rows first_rows[s]..first_rows[s + 1] - 1


@dataclass(frozen=True, eq=False)
class Index:
    """A packed dataset, or a view of some of its rows.

    Row ids, labels and ``num_classes`` are those of the whole dataset in every view, so a sample or a class
    has one number everywhere.
    """

    storage: Storage  # where the shards lie
    cache: ShardCache  # for those that are not on this machine
    columns: Columns
    rows: range | NDArray[np.int64]  # ids of the rows in this view, ascending
    classes: pa.RecordBatch  # name and super_class, by label, over all splits
    splits: tuple[str, ...]
    extensions: tuple[str, ...]
    shards: Shards
    num_classes: int  # of the split "train": labels 0..num_classes-1, one row of a class bank each
    description: Mapping[str, Any]  # what dataset.json says

    @classmethod
    def load(cls, path: str | Path, options: Mapping[str, Any] | None = None, cache: ShardCache | None = None) -> Index:
        """Open a dataset.

        Args:
            path: of its folder, or a URL.
            options: of fsspec's file system, for a URL.
            cache: for files that are not on this machine; None takes one in the user's home, of 50 GB.

        Raises:
            DataError: no dataset there, its tables are damaged, or they cannot be fetched.
        """
        given = Storage.open(path, options)
        cache = cache or ShardCache(default_cache_folder(), DEFAULT_CACHE_BYTES)
        with tables_of(given, cache) as (storage, folder):
            index = cls._open(storage, cache, folder)
            if not storage.is_local:
                index._check_version(folder)
        return index

    @classmethod
    def _open(cls, storage: Storage, cache: ShardCache, folder: Path) -> Index:
        description = read_description(folder)
        if description is None or not (folder / INDEX_FILE).is_file():
            raise DataError(
                f"no dataset at {storage} (it needs {INDEX_FILE} and dataset.json): run `dmlscale pack` first"
            )
        batch = map_table(folder / INDEX_FILE, INDEX_SCHEMA)
        split, extension = batch.column("split"), batch.column("extension")
        columns = Columns(
            keys=batch.column("key"),
            shards=batch.column("shard").to_numpy(),
            offsets=batch.column("offset").to_numpy(),
            sizes=batch.column("size").to_numpy(),
            num_parts=batch.column("num_parts").to_numpy(),
            extensions=extension.indices.to_numpy(),
            labels=batch.column("label").to_numpy(),
            splits=split.indices.to_numpy(),
            hashes=batch.column("content_hash").to_numpy(),
            by_class=batch.column("by_class").to_numpy(),
        )
        classes = map_table(folder / CLASSES_FILE, CLASSES_SCHEMA, is_small=True)
        shards = map_table(folder / SHARDS_FILE, SHARDS_SCHEMA, is_small=True)
        names = tuple(shards.column("name").to_pylist())
        check_shard_names(names, description, storage)
        counts = shards.column("num_samples").to_numpy()
        first_rows = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        sizes = shards.column("size_bytes").to_numpy()
        _check_tables(folder, columns, len(classes), first_rows)
        return cls(
            storage=storage,
            cache=cache,
            columns=columns,
            rows=range(batch.num_rows),
            classes=classes,
            splits=tuple(split.dictionary.to_pylist()),
            extensions=tuple(extension.dictionary.to_pylist()),
            shards=Shards(names, sizes, first_rows),
            num_classes=description["num_train_classes"],
            description=description,
        )

    def _check_version(self, folder: Path) -> None:
        """Whether tables that were fetched one after the other belong together."""
        found = dataset_version(folder, self.columns.hashes, self.columns.splits, self.columns.labels)
        if found != self.description["version"]:
            discard_tables(self.storage, self.cache)
            raise DataError(
                f"the tables at {self.storage} are of different versions of the dataset: an upload is under way or was "
                f"cut off; try again when it is complete"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, name: str) -> Index:
        """The rows of one split.

        Raises:
            DataError: there is no such split.
        """
        if name not in self.splits:
            raise DataError(f"no split {name!r} in {self.storage} (there are: {', '.join(self.splits)})")
        is_in = _of(self.columns.splits, self.rows) == self.splits.index(name)
        first, count = int(np.argmax(is_in)), int(np.count_nonzero(is_in))
        if isinstance(self.rows, range) and is_in[first : first + count].all():
            return replace(self, rows=self.rows[first : first + count])
        return replace(self, rows=self.row_ids[is_in])

    def take(self, positions: NDArray[np.int64]) -> Index:
        """The rows at ``positions``, ascending, of this view."""
        return replace(self, rows=self.row_ids[positions])

    @property
    def row_ids(self) -> NDArray[np.int64]:
        """(n,) ids of the rows in this view; made anew where they are a range."""
        return np.arange(self.rows.start, self.rows.stop) if isinstance(self.rows, range) else self.rows

    def row_ids_between(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ids of the rows at the positions ``start`` to below ``stop`` of this view."""
        part = self.rows[start:stop]
        return np.arange(part.start, part.stop) if isinstance(part, range) else part

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """(n,) global class ids."""
        return _of(self.columns.labels, self.rows)

    @cached_property
    def class_rows(self) -> ClassRows:
        """The rows of this view by class; for a whole split that lies together, without a copy."""
        if isinstance(self.rows, range) and len(self):
            code = int(self.columns.splits[self.rows.start])
            counts = class_counts(self.columns.splits, self.columns.labels, len(self.splits), len(self.classes))
            if counts[code].sum() == len(self) and (_of(self.columns.splits, self.rows) == code).all():
                start = int(counts[:code].sum())
                starts = np.concatenate(([0], np.cumsum(counts[code])))
                return ClassRows(self.columns.by_class[start : start + len(self)], starts)
        return ClassRows.from_labels(self.labels, self.row_ids)

    @property
    def class_names(self) -> Sequence[str]:
        """By label, over all splits; read from the file one by one."""
        return _Names(self.classes.column("name"))

    @property
    def has_super_classes(self) -> bool:
        """Whether any class has one."""
        return pc.any(pc.not_equal(self.classes.column("super_class"), "")).as_py()

    def super_classes(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """(C,) number of each class's super-class, and their names; a class without one is one by itself."""
        encoded = self.classes.column("super_class").dictionary_encode()
        codes, names = encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
        if "" not in names:
            return codes, tuple(names)
        alone = np.flatnonzero(codes == names.index(""))
        codes[alone] = len(names) + np.arange(len(alone))
        return codes, (*names, *(self.class_names[label] for label in alone.tolist()))

    @cached_property
    def used_shards(self) -> NDArray[np.int64]:
        """Numbers of the shards that hold rows of this view, ascending."""
        if not len(self):
            return np.empty(0, np.int64)
        if isinstance(self.rows, range):
            ends = np.searchsorted(self.shards.first_rows, [self.rows.start, self.rows.stop - 1], "right") - 1
            return np.arange(ends[0], ends[1] + 1)
        return np.unique(self.columns.shards[self.rows]).astype(np.int64)

    @property
    def shard_rows(self) -> ShardRows:
        """Where the rows of this view lie, for plans that take a few shards at a time."""
        return ShardRows(self.shards.first_rows, self.columns.labels, self.rows)

    def open_shard(self, number: int) -> BinaryIO:
        """A shard, open for reading; fetched first if it is not on this machine.

        Raises:
            DataError: it cannot be had.
        """
        name = self.shards.names[number]
        # A local shard of another size may be cut off: the samples before the cut are as good as ever.
        size = None if self.storage.holds_locally(name) else int(self.shards.sizes[number])
        return self.cache.open(self.storage, name, size)

    def discard_copy(self, number: int) -> bool:
        """Drop the cache's copy of a shard; False for one on this machine, which has none."""
        name = self.shards.names[number]
        if self.storage.holds_locally(name):
            return False
        self.cache.discard(self.storage, name)
        return True

    def key(self, row_id: int) -> str:
        """The key of one row, as in the shard."""
        return self.columns.keys[row_id].as_py()

    def where(self, row_id: int) -> str:
        """A sample and its place, for messages."""
        shard = self.shards.names[self.columns.shards[row_id]]
        return f"sample {self.key(row_id)!r} (shard {shard}, offset {int(self.columns.offsets[row_id])})"


class _Names(Sequence[str]):
    """A column of texts as a sequence."""

    def __init__(self, column: pa.Array) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, position: Any) -> Any:
        found = self._column[position]
        return found.to_pylist() if isinstance(position, slice) else found.as_py()


def _of(column: NDArray, rows: range | NDArray[np.int64]) -> NDArray:
    return column[rows.start : rows.stop] if isinstance(rows, range) else column[rows]


def _check_tables(folder: Path, columns: Columns, num_classes: int, first_rows: NDArray[np.int64]) -> None:
    """Whether the tables fit each other; reads a few columns once."""
    again = f"delete {folder} and pack again"
    num_rows = len(columns.labels)
    lowest, highest = int(columns.labels.min()), int(columns.labels.max())
    if lowest < 0 or highest >= num_classes:
        wrong = lowest if lowest < 0 else highest
        raise DataError(f"{folder / INDEX_FILE}: label {wrong} is outside 0..{num_classes - 1}: {again}")
    does_fit = first_rows[-1] == num_rows and bool((np.diff(first_rows) > 0).all())
    for ends in (first_rows[:-1], first_rows[1:] - 1):
        does_fit = does_fit and np.array_equal(columns.shards[ends], np.arange(len(ends)))
    if not does_fit:
        raise DataError(f"{folder / INDEX_FILE} and {SHARDS_FILE} do not fit each other: {again}")
    if columns.by_class.min() < 0 or columns.by_class.max() >= num_rows:
        raise DataError(f"{folder / INDEX_FILE}: column 'by_class' leads outside its {num_rows} rows: {again}")
