"""A Parquet or Arrow file as a table of a manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dmlscale.data.errors import DataError

PARQUET_SUFFIXES, ARROW_SUFFIXES = (".parquet", ".pq"), (".arrow", ".feather")
_ROWS = 2**14  # of a batch
_READ_BYTES = 2**20  # at a time, of a column


@dataclass(frozen=True)
class ColumnarTable:
    """A Parquet or Arrow file. A value in a struct is the column "struct.field"; rows are counted from 0."""

    path: Path

    def column_names(self) -> list[str]:
        """See ``Table``."""
        names = []
        for field in self._schema():
            names.append(field.name)
            if pa.types.is_struct(field.type):
                names += [f"{field.name}.{child.name}" for child in field.type.fields]
        return names

    def type_of(self, column: str) -> pa.DataType:
        """The type of a column that is there."""
        schema = self._schema()
        if column in schema.names:
            return schema.field(column).type
        name, _, child = column.partition(".")
        return schema.field(name).type.field(child).type

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Sequence[str | None]]]:
        """See ``Table``.

        Raises:
            DataError: a column is neither text nor whole numbers; the file is damaged.
        """
        for column in columns:
            if not _is_text_like(self.type_of(column)):
                raise DataError(
                    f"manifest: column {column!r} of {self.path} has the type {self.type_of(column)}, "
                    "must be text or whole numbers"
                )
        number = 0
        for arrays in self.batches(columns, _ROWS):
            for row in zip(*(array.cast(pa.string()).to_pylist() for array in arrays), strict=True):
                yield number, row
                number += 1

    def batches(self, columns: Sequence[str], num_rows: int) -> Iterator[list[pa.Array]]:
        """The columns, ``num_rows`` rows (at most) at a time; the others are not read.

        Raises:
            DataError: the file is damaged.
        """
        try:
            # pyarrow.dataset would do for both, but it reads far ahead: all of a file of 500 MB.
            batches = self._parquet_batches if self._is_parquet else self._arrow_batches
            for batch in batches(columns, num_rows):
                yield [_column(batch, column) for column in columns]
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"manifest: {self.path} is damaged: {error}") from None

    def place(self, number: int) -> str:
        """See ``Table``."""
        return f"{self.path}, row {number} (from 0),"

    @property
    def _is_parquet(self) -> bool:
        return self.path.suffix in PARQUET_SUFFIXES

    def _schema(self) -> pa.Schema:
        try:
            return pq.read_schema(self.path) if self._is_parquet else pa.ipc.open_file(str(self.path)).schema
        except (pa.ArrowInvalid, OSError) as error:
            kind = "Parquet" if self._is_parquet else "an Arrow file (a stream of Arrow is none)"
            raise DataError(f"manifest: {self.path} cannot be read as {kind}: {error}") from None

    def _parquet_batches(self, columns: Sequence[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=_READ_BYTES) as file:
            yield from file.iter_batches(num_rows, columns=list(columns), use_threads=False)

    def _arrow_batches(self, columns: Sequence[str], num_rows: int) -> Iterator[pa.RecordBatch]:
        names = self._schema().names
        wanted = [
            place for place, name in enumerate(names) if any(c == name or c.startswith(f"{name}.") for c in columns)
        ]
        options = pa.ipc.IpcReadOptions(included_fields=wanted)
        with pa.memory_map(str(self.path)) as mapped, pa.ipc.open_file(mapped, options=options) as reader:
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                for start in range(0, batch.num_rows, num_rows):
                    yield batch.slice(start, num_rows)


def _column(batch: pa.RecordBatch, column: str) -> pa.Array:
    if column in batch.schema.names:
        return batch.column(column)
    name, _, child = column.partition(".")
    return pc.struct_field(batch.column(name), child)


def _is_text_like(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text_like(kind.value_type)
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    return any(check(kind) for check in checks)
