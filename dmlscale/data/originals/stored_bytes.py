"""Files that are stored in a column of a table, read one by one in any order.

Parquet, and Arrow with compression, can only be read a whole row group at a time: one sample of a group of 100 MB takes
0.1 s. Packing reads every sample once in mixed order, so such columns are first written into mapped files, in one pass.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa

from dmlscale.data.errors import DataError
from dmlscale.data.originals.columnar_table import ARROW_SUFFIXES, ColumnarTable
from dmlscale.data.originals.scratch_names import scratch_name

_COLUMN = "bytes"  # of the files made here
_ROWS = 256  # of a batch: what is in memory at a time


class StoredBytes:
    """The column of each of some tables.

    Args:
        tables: by number.
        column: that holds files.
        scratch: folder for the files made of tables that have no places to jump to.

    Raises:
        DataError: the column holds something else, or a table is damaged.
    """

    def __init__(self, tables: Sequence[ColumnarTable], column: str, scratch: Path) -> None:
        self._places: list[tuple[Path, str]] = []
        for table in tables:
            kind = table.type_of(column)
            if not any(is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary)):
                raise DataError(f"manifest: column {column!r} of {table.path} has the type {kind}, must be binary")
            mapped = (table.path, column)
            self._places.append(mapped if _is_mappable(*mapped) else (_unpack(table, column, scratch), _COLUMN))

    def read(self, table: int, row: int) -> bytes | None:
        """The file in one row; None where there is none."""
        return _mapped_column(*self._places[table])[row].as_py()


@lru_cache(maxsize=256)
def _mapped_column(path: Path, column: str) -> pa.ChunkedArray:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(column)


def _is_mappable(path: Path, column: str) -> bool:
    """Whether a column can be read where it lies: it is in an Arrow file, not compressed, not in a struct."""
    if path.suffix not in ARROW_SUFFIXES:
        return False
    mapped = pa.memory_map(str(path))
    reader = pa.ipc.open_file(mapped)
    if column not in reader.schema.names or not reader.num_record_batches:
        return False
    whole, data = mapped.read_buffer(), reader.get_batch(0).column(column).buffers()[-1]
    return data is not None and whole.address <= data.address < whole.address + whole.size


def _unpack(table: ColumnarTable, column: str, scratch: Path) -> Path:
    """A mapped file of the column; it gets its name when it is complete."""
    # The column is in the name as a hash: one of a struct may be called like a path.
    path = scratch / f"{scratch_name(table.path)}-{blake2b(column.encode(), digest_size=4).hexdigest()}.arrow"
    if path.is_file():
        return path
    scratch.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    schema = pa.schema([(_COLUMN, pa.large_binary())])
    with partial.open("wb") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for arrays in table.batches([column], _ROWS):
                writer.write_batch(pa.RecordBatch.from_arrays([arrays[0].cast(pa.large_binary())], schema=schema))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path
