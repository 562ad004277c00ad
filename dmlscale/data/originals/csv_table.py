"""A CSV file as a table of a manifest."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

from dmlscale.data.errors import DataError


@dataclass(frozen=True)
class CsvTable:
    """A CSV file in UTF-8 with a header; may be compressed with gzip. Rows are told by their line."""

    path: Path
    delimiter: str

    def column_names(self) -> list[str]:
        """See ``Table``."""
        return next(self._records())[1]

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Sequence[str | None]]]:
        """See ``Table``.

        Raises:
            DataError: a line is not UTF-8, is no CSV, or has another number of values than the header.
        """
        records = self._records()
        _, header = next(records)
        places = [header.index(name) for name in columns]
        for line, record in records:
            if len(record) != len(header):
                raise DataError(f"{self.place(line)} has {len(record)} values, the header has {len(header)}")
            yield line, [record[place] or None for place in places]

    def place(self, number: int) -> str:
        """See ``Table``."""
        return f"{self.path}, line {number},"

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Line number and values of each record, the header first."""
        with fsspec.open(str(self.path), "rb", compression="infer") as file:
            reader = csv.reader(self._lines(file), delimiter=self.delimiter, strict=True)
            try:
                for record in reader:
                    if record:
                        yield reader.line_num, record
            except csv.Error as error:
                raise DataError(f"{self.place(reader.line_num)} is no CSV: {error}") from None
            except (OSError, EOFError) as error:
                raise DataError(f"{self.path} is damaged: {error}") from None
            if not reader.line_num:
                raise DataError(f"manifest: {self.path} is empty: its first line must name the columns")

    def _lines(self, file: Iterator[bytes]) -> Iterator[str]:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{self.place(number)} is not UTF-8: save the file as UTF-8") from None
