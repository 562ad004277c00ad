"""Write the tables of a dataset, in memory that does not grow with the number of samples."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmlscale.data.layout import CLASSES_FILE, CLASSES_SCHEMA, INDEX_FILE, INDEX_SCHEMA, SHARDS_FILE, SHARDS_SCHEMA

CHUNK = 2**20  # rows that are in memory at a time
_DTYPES: Mapping[str, type[np.generic]] = {
    "shard": np.int32,
    "offset": np.int64,
    "size": np.int64,
    "num_parts": np.int16,
    "extension": np.int8,
    "label": np.int32,
    "split": np.int8,
    "content_hash": np.uint64,
}


class IndexWriter:
    """Collects the rows of an index in one file per column, and joins them into ``index.arrow``.

    Arrow's own writer takes a batch at a time, and what is written in many batches cannot be mapped as one array.

    Owns the column files until the end of a ``with`` block.

    Args:
        folder: where the index is to be.
        splits: names; rows give their position.
        extensions: names; rows give their position.
    """

    def __init__(self, folder: Path, splits: Sequence[str], extensions: Sequence[str]) -> None:
        self._folder = folder
        self._names = {"split": list(splits), "extension": list(extensions)}
        self._columns = folder / "columns"
        shutil.rmtree(self._columns, ignore_errors=True)
        self._columns.mkdir()
        self._files: dict[str, BinaryIO] = {name: self._path(name).open("wb") for name in (*_DTYPES, "text", "ends")}
        self._num_rows = 0
        self._text_end = 0
        self._files["ends"].write(np.zeros(1, np.int64).tobytes())

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with ExitStack() as stack:  # closing fails too where the disk is full
            stack.callback(shutil.rmtree, self._columns, ignore_errors=True)
            for file in self._files.values():
                stack.callback(file.close)

    def append(self, keys: Sequence[str], columns: Mapping[str, NDArray]) -> None:
        """Add rows, in their final order.

        Args:
            keys: (m,) of the samples.
            columns: (m,) numbers for every other column but ``by_class``.
        """
        texts = [key.encode() for key in keys]
        ends = self._text_end + np.cumsum([len(text) for text in texts], dtype=np.int64)
        self._files["text"].write(b"".join(texts))
        self._files["ends"].write(ends.tobytes())
        for name, dtype in _DTYPES.items():
            self._files[name].write(np.ascontiguousarray(columns[name], dtype).tobytes())
        self._num_rows += len(texts)
        self._text_end = int(ends[-1]) if len(ends) else self._text_end

    def finish(self, num_classes: int) -> None:
        """Write ``index.arrow`` into the folder.

        Raises:
            OSError: the disk is full.
        """
        for file in self._files.values():
            file.flush()
        if self._num_rows:
            split, label = (np.memmap(self._path(name), _DTYPES[name], "r") for name in ("split", "label"))
            with self._path("by_class").open("wb") as file:
                # A mapped file with holes would end the process where the disk is full; this is an error.
                os.posix_fallocate(file.fileno(), 0, self._num_rows * np.dtype(np.int64).itemsize)
            by_class = np.memmap(self._path("by_class"), np.int64, "r+")
            sort_by_class(split, label, len(self._names["split"]), num_classes, out=by_class)
            by_class.flush()
        arrays = [self._array(field) for field in INDEX_SCHEMA]
        write_table(self._folder / INDEX_FILE, pa.RecordBatch.from_arrays(arrays, schema=INDEX_SCHEMA))

    def _path(self, column: str) -> Path:
        return self._columns / column

    def _array(self, field: pa.Field) -> pa.Array:
        if field.name == "key":
            buffers = [None, self._buffer("ends"), self._buffer("text")]
            return pa.Array.from_buffers(field.type, self._num_rows, buffers)
        if pa.types.is_dictionary(field.type):
            indices = pa.Array.from_buffers(field.type.index_type, self._num_rows, [None, self._buffer(field.name)])
            return pa.DictionaryArray.from_arrays(indices, pa.array(self._names[field.name], pa.string()))
        return pa.Array.from_buffers(field.type, self._num_rows, [None, self._buffer(field.name)])

    def _buffer(self, column: str) -> pa.Buffer:
        path = self._path(column)
        if not path.is_file() or not path.stat().st_size:
            return pa.py_buffer(b"")
        return pa.memory_map(str(path)).read_buffer()


def write_classes(folder: Path, names: Sequence[str], super_classes: Sequence[str]) -> None:
    """Write ``classes.arrow``: entries by label."""
    columns = [pa.array(names, pa.large_string()), pa.array(super_classes, pa.string())]
    write_table(folder / CLASSES_FILE, pa.RecordBatch.from_arrays(columns, schema=CLASSES_SCHEMA))


def write_shard_table(folder: Path, names: Sequence[str], sizes: Sequence[int], num_samples: Sequence[int]) -> None:
    """Write ``shards.arrow``: entries by the shard's number."""
    columns = [pa.array(names, pa.string()), pa.array(sizes, pa.int64()), pa.array(num_samples, pa.int64())]
    write_table(folder / SHARDS_FILE, pa.RecordBatch.from_arrays(columns, schema=SHARDS_SCHEMA))


def write_table(path: Path, batch: pa.RecordBatch) -> None:
    """One record batch as an Arrow file that can be mapped."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def sort_by_class(
    splits: NDArray[np.int8],
    labels: NDArray[np.int32],
    num_splits: int,
    num_classes: int,
    *,
    out: NDArray[np.int64],
) -> None:
    """Row numbers (n,) sorted by split, label and row, by counting: what is sorted at a time is a chunk."""
    starts = np.zeros(num_splits * num_classes + 1, np.int64)
    for cells in _cells(splits, labels, num_classes):
        np.add.at(starts, cells + 1, 1)
    np.cumsum(starts, out=starts)
    row = 0
    for cells in _cells(splits, labels, num_classes):
        order = np.argsort(cells, kind="stable")
        ordered = cells[order]
        is_first = np.diff(ordered, prepend=-1) != 0
        first = np.flatnonzero(is_first)
        place = np.arange(len(cells)) - np.repeat(first, np.diff(first, append=len(cells)))
        out[starts[ordered] + place] = row + order
        starts[ordered[first]] += np.diff(first, append=len(cells))
        row += len(cells)


def _cells(splits: NDArray[np.int8], labels: NDArray[np.int32], num_classes: int) -> Iterator[NDArray[np.int64]]:
    """A number for each pair of split and label, chunk by chunk."""
    for start in range(0, len(labels), CHUNK):
        yield splits[start : start + CHUNK].astype(np.int64) * num_classes + labels[start : start + CHUNK]
