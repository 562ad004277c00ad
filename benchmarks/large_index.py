"""The tables of a data set of any size without its shards: what planning an epoch is measured over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmlscale.data.layout import FORMAT_VERSION, INDEX_FILE, INDEX_SCHEMA, write_description
from dmlscale.data.packing.index_writer import write_classes, write_shard_table, write_table

RUN_LENGTH = 4  # samples of a class that stand beside each other in a shard
CLASSES_PER_SUPER_CLASS = 1_000
SAMPLE_BYTES = 1_000


def write_index(folder: Path, num_rows: int, num_classes: int, rows_per_shard: int) -> None:
    """Classes in Zipf's proportions, in runs at random places, as the packer leaves them."""
    rows, labels = _rows_and_labels(num_rows, num_classes)
    shard_starts = np.append(np.arange(0, num_rows, rows_per_shard), num_rows)
    shards = np.repeat(np.arange(len(shard_starts) - 1, dtype=np.int32), np.diff(shard_starts))
    offsets = (np.arange(num_rows) - shard_starts[shards]) * (3 * 512 + SAMPLE_BYTES + 24) + 512
    zeros = np.zeros(num_rows, np.int8)
    columns = {
        "key": _keys(num_rows),
        "shard": pa.array(shards),
        "offset": pa.array(offsets),
        "size": pa.array(np.full(num_rows, SAMPLE_BYTES)),
        "num_parts": pa.array(np.ones(num_rows, np.int16)),
        "extension": pa.DictionaryArray.from_arrays(pa.array(zeros), pa.array(["png"])),
        "label": pa.array(labels),
        "split": pa.DictionaryArray.from_arrays(pa.array(zeros), pa.array(["train"])),
        "content_hash": pa.array(np.arange(num_rows, dtype=np.uint64)),
        "by_class": pa.array(rows),
    }
    batch = pa.RecordBatch.from_arrays([columns[name] for name in INDEX_SCHEMA.names], schema=INDEX_SCHEMA)
    write_table(folder / INDEX_FILE, batch)
    supers = [f"super{label // CLASSES_PER_SUPER_CLASS}" for label in range(num_classes)]
    write_classes(folder, [f"class{label}" for label in range(num_classes)], supers)
    names = [f"train-{number:06d}.tar" for number in range(len(shard_starts) - 1)]
    counts = np.diff(shard_starts).tolist()
    write_shard_table(folder, names, [count * 3 * SAMPLE_BYTES for count in counts], counts)
    description = {"format_version": FORMAT_VERSION, "num_train_classes": num_classes, "input": "image", "version": "0"}
    write_description(folder, description)


def _rows_and_labels(num_rows: int, num_classes: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rows by class, and labels by row."""
    weights = (np.arange(num_classes) + 10.0) ** -0.8
    counts = 1 + (weights / weights.sum() * (num_rows - num_classes)).astype(np.int64)
    counts[0] += num_rows - counts.sum()
    rng = np.random.default_rng(0)
    counts = rng.permutation(counts)
    runs_of_class = -(-counts // RUN_LENGTH)
    lengths = np.full(runs_of_class.sum(), RUN_LENGTH)
    lengths[np.cumsum(runs_of_class) - 1] -= runs_of_class * RUN_LENGTH - counts
    laid = rng.permutation(len(lengths))
    begins = np.empty_like(lengths)
    begins[laid] = np.cumsum(lengths[laid]) - lengths[laid]
    within = np.arange(num_rows) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = np.repeat(begins, lengths) + within
    class_of_run = np.repeat(np.arange(num_classes, dtype=np.int32), runs_of_class)
    return _sorted_in_classes(rows, counts), np.repeat(class_of_run[laid], lengths[laid])


def _sorted_in_classes(rows: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """As the index has them: ascending within each class."""
    ends = np.cumsum(counts)
    for end, count in zip(ends.tolist(), counts.tolist(), strict=True):
        if count > RUN_LENGTH:
            rows[end - count : end].sort()
    return rows


def _keys(num_rows: int) -> pa.Array:
    """Of eight digits: the number of the row."""
    digits = np.empty((num_rows, 8), np.uint8)
    left = np.arange(num_rows, dtype=np.uint32)
    for place in range(7, -1, -1):
        digits[:, place] = 48 + left % 10
        left //= 10
    ends = np.arange(num_rows + 1, dtype=np.int64) * 8
    return pa.Array.from_buffers(pa.large_string(), num_rows, [None, pa.py_buffer(ends), pa.py_buffer(digits)])
