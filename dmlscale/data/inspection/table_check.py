"""Whether the tables of a dataset are right in themselves and fit each other; no shard is opened.

Columns are looked at in chunks, so that an index of 10^8 samples needs little memory; only the search for keys that
come twice holds a few numbers per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmlscale.data.hashing import mix
from dmlscale.data.index import Index
from dmlscale.data.inspection.description_check import check_description, check_files
from dmlscale.data.inspection.problems import Problem
from dmlscale.data.layout import CLASSES_FILE, INDEX_FILE, SHARDS_FILE
from dmlscale.data.statistics import CHUNK, duplicates

_KEY_BYTES = 2**22  # looked at together: some numbers are made for each

IsWrong = Callable[[slice], NDArray[np.bool_]]  # some rows -> (m,) which of them are wrong


def check_codes(index: Index) -> Iterator[Problem]:
    """What makes an index unreadable: with one of these nothing else can be looked at."""
    columns = index.columns
    try:
        columns.keys.validate(full=True)
    except pa.ArrowInvalid as error:
        yield Problem(INDEX_FILE, "", f"column 'key' is damaged ({error})")
        return
    for name, codes, values in (
        ("split", columns.splits, index.splits),
        ("extension", columns.extensions, index.extensions),
    ):

        def is_outside(part: slice, codes: NDArray[np.int8] = codes, count: int = len(values)) -> NDArray[np.bool_]:
            return (codes[part] < 0) | (codes[part] >= count)

        yield from _rows(index, is_outside, f"its entry in column {name!r} leads outside the {len(values)} names")


def check_tables(index: Index) -> Iterator[Problem]:
    """What is wrong with the tables of a whole dataset in which `check_codes` has found nothing."""
    yield from _check_keys(index)
    yield from _check_places(index)
    yield from _rows(index, _breaks_class_order(index), "column 'by_class' does not list the rows by split and class")
    yield from _check_names(index)
    yield from check_description(index)
    yield from check_files(index)


def key_hashes(keys: pa.LargeStringArray) -> NDArray[np.uint64]:
    """(n,) a number for each key, the same for equal ones and hardly ever for others; without Python objects."""
    ends = np.frombuffer(keys.buffers()[1], np.int64)[keys.offset : keys.offset + len(keys) + 1]
    text = np.frombuffer(keys.buffers()[2] or b"", np.uint8)
    hashes = np.empty(len(keys), np.uint64)
    first = 0
    while first < len(keys):
        # As many keys as have so many bytes; one at least. Empty keys have none, so their number is limited too.
        stop = int(np.searchsorted(ends, ends[first] + _KEY_BYTES, "right")) - 1
        stop = min(max(stop, first + 1), first + _KEY_BYTES)
        part = ends[first : stop + 1]
        sizes = np.diff(part)
        place = np.arange(part[0], part[-1]) - np.repeat(part[:-1], sizes)  # of each byte in its key
        # A random weight for every place makes a sum that tells keys apart (multilinear hashing).
        weighted = (text[part[0] : part[-1]].astype(np.uint64) + np.uint64(1)) * mix(place.astype(np.uint64))
        sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(weighted, dtype=np.uint64)))
        hashes[first:stop] = np.diff(sums[part - part[0]])
        first = stop
    return hashes


def _check_keys(index: Index) -> Iterator[Problem]:
    later, first = duplicates(key_hashes(index.columns.keys))
    for row, original in zip(later.tolist(), first.tolist(), strict=True):
        if index.key(row) == index.key(original):
            yield Problem(INDEX_FILE, index.key(row), f"the key comes twice: in rows {original:,} and {row:,}")


def _check_places(index: Index) -> Iterator[Problem]:
    columns, shards = index.columns, index.shards

    def is_of_another_shard(part: slice) -> NDArray[np.bool_]:
        rows = np.arange(*part.indices(len(columns.labels)))
        return columns.shards[part] != np.searchsorted(shards.first_rows, rows, "right") - 1

    def is_outside(part: slice) -> NDArray[np.bool_]:
        offsets, sizes = columns.offsets[part], columns.sizes[part]
        last = shards.sizes[np.clip(columns.shards[part], 0, len(shards.sizes) - 1)]
        return (offsets < 0) | (sizes < 1) | (offsets > last - sizes) | (columns.num_parts[part] < 1)

    yield from _rows(index, is_of_another_shard, f"its shard is not that of its row in {SHARDS_FILE}")
    yield from _rows(index, is_outside, "its offset and size lead outside its shard")


def _breaks_class_order(index: Index) -> IsWrong:
    """Of the rows that 'by_class' lists: which do not come after the one before, by split, label and row.

    If none does the column is right: numbers that ascend so cannot repeat, and there are as many as rows.
    """
    columns = index.columns

    def is_wrong(part: slice) -> NDArray[np.bool_]:
        start, stop, _ = part.indices(len(columns.by_class))
        rows = columns.by_class[max(0, start - 1) : stop]
        cells = columns.splits[rows].astype(np.int64) * len(index.classes) + columns.labels[rows]
        ascends = (cells[1:] > cells[:-1]) | ((cells[1:] == cells[:-1]) & (rows[1:] > rows[:-1]))
        return ~ascends if start else np.concatenate(([False], ~ascends))

    return is_wrong


def _check_names(index: Index) -> Iterator[Problem]:
    for where, names in (
        (CLASSES_FILE, index.classes.column("name")),
        (SHARDS_FILE, pa.array(index.shards.names)),
    ):
        counted = names.value_counts()
        often = np.flatnonzero(counted.field("counts").to_numpy() > 1)
        for position in often.tolist():
            name, count = counted[position].as_py().values()
            yield Problem(where, "", f"the name {name!r} comes {count} times")


def _rows(index: Index, is_wrong: IsWrong, what: str) -> Iterator[Problem]:
    """One problem for all rows that are wrong in the same way, with the key of the first."""
    count, first = 0, 0
    for start in range(0, len(index.columns.labels), CHUNK):
        wrong = is_wrong(slice(start, start + CHUNK))
        if not count and wrong.any():
            first = start + int(np.argmax(wrong))
        count += int(np.count_nonzero(wrong))
    if count:
        more = f"; so are {count - 1:,} other rows" if count > 1 else ""
        yield Problem(INDEX_FILE, index.key(first), f"row {first:,}: {what}{more}")
