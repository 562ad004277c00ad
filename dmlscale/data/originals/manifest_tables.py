"""Tables that list samples, a row each: CSV, Parquet and Arrow files, read in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from dmlscale.data.errors import DataError
from dmlscale.data.originals.columnar_table import ARROW_SUFFIXES, PARQUET_SUFFIXES, ColumnarTable
from dmlscale.data.originals.csv_table import CsvTable

_COLUMNAR = (*PARQUET_SUFFIXES, *ARROW_SUFFIXES)
_CSV_DELIMITERS = {".csv": ",", ".tsv": "\t"}

Values = Sequence[str | None]  # of one row; None for a missing one


class Table(Protocol):
    """One file of a manifest."""

    @property
    def path(self) -> Path:
        """Of the file."""

    def column_names(self) -> list[str]:
        """The columns there are."""

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, Values]]:
        """Number and values of each row, the values as text."""

    def place(self, number: int) -> str:
        """Where a row is, for a message."""


def open_tables(path: Path) -> list[Table]:
    """The tables of a manifest: one file, or all Parquet and Arrow files below a folder by name.

    Raises:
        DataError: there is none, or its ending is unknown.
    """
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.suffix in _COLUMNAR and _is_visible(p.relative_to(path)))
        if not found:
            raise DataError(f"manifest: no {', '.join(_COLUMNAR)} file in the folder {path}")
        return [ColumnarTable(part) for part in found]
    if not path.is_file():
        raise DataError(f"manifest: there is no {path}")
    suffix = path.suffixes[-2] if path.suffix == ".gz" and len(path.suffixes) > 1 else path.suffix
    if suffix in _CSV_DELIMITERS:
        return [CsvTable(path, _CSV_DELIMITERS[suffix])]
    if suffix in _COLUMNAR:
        return [ColumnarTable(path)]
    raise DataError(f"manifest: {path} must end in one of {', '.join([*_CSV_DELIMITERS, *_COLUMNAR])}")


def _is_visible(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts)
