"""Samples that a table lists: CSV, Parquet or Arrow."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.originals.class_split import check_fraction, split_of_class
from dmlscale.data.originals.columnar_table import ColumnarTable
from dmlscale.data.originals.extensions import EXTENSIONS, extension_of
from dmlscale.data.originals.manifest_tables import Table, Values, open_tables
from dmlscale.data.originals.names import key_of, readable
from dmlscale.data.originals.stored_bytes import StoredBytes
from dmlscale.data.sources import SOURCES, TRAIN_SPLIT, Item
from dmlscale.data.storage.file_systems import connect
from dmlscale.data.storage.retry import Retry
from dmlscale.data.storage.storage import READ_TIMEOUT_SECONDS
from dmlscale.data.storage.transfer_errors import MissingFileError, ShardError, clear_errors
from dmlscale.redaction import shown

_RETRY = Retry()
_USUAL_EXTENSION = {"image": "jpg", "array": "npy", "audio": "wav"}


@SOURCES.register("manifest")
@dataclass(frozen=True)
class Manifest:
    """Samples listed in a table: a CSV file with a header, a Parquet or Arrow file, or a folder of those.

    A row has the path or URL of a file, or the file itself. Rows are read in a stream, so their number does not matter.
    The key of a sample is that of its ``key_column``, else its path without the extension (and, of a URL, without the
    query), else table and row number. Where different paths have one key, "-2", "-3", ... follow in the order of the
    rows; the same path twice is a reject, as is a repeated ``key_column``.

    Args:
        path: the table, or a folder of Parquet or Arrow files. It may end in .csv, .tsv (also .gz), .parquet, .pq,
            .arrow or .feather.
        path_column: path or URL (any that fsspec opens) of the file; None: "path", if there is one.
        bytes_column: the file itself (not in CSV); None: "bytes", if there is one. Parquet is unpacked for it.
        label_column: name of the class, a text or a whole number.
        split_column: "train", "test", ...; None: "split" if there is one, else classes are dealt by a hash of the name.
        key_column: unique name of the sample; None: "key", if there is one.
        super_class_column: level above the classes; None: "super_class", if there is one.
        root: folder or URL that relative paths start from; None: the folder of the table.
        train_fraction: share of the classes to train on, where there is no split.
        seed: of the deal.
        input: what the files are.
        extension: of files whose names do not tell one that is known; None: what is usual for ``input``.

    Columns in a struct are named "image.bytes".
    """

    path: str
    path_column: str | None = None
    bytes_column: str | None = None
    label_column: str = "label"
    split_column: str | None = None
    key_column: str | None = None
    super_class_column: str | None = None
    root: str | None = None
    train_fraction: float = 0.5
    seed: int = 0
    input: InputKind = "image"
    extension: str | None = None

    def __post_init__(self) -> None:
        check_fraction("manifest", self.train_fraction)
        if self.path_column is not None and self.bytes_column is not None:
            raise DataError("manifest: give path_column or bytes_column, not both: a sample has one file")
        if self.input not in _USUAL_EXTENSION:
            raise DataError(f"manifest: input={self.input!r}, must be one of {', '.join(_USUAL_EXTENSION)}")

    def open(self, scratch: Path) -> OpenManifest:
        """See ``Source``; files stored in Parquet are written into ``scratch`` first.

        Raises:
            DataError: there is no such table, or it lacks a column.
        """
        path = Path(self.path).expanduser().absolute()
        tables = open_tables(path)
        columns = self._columns(tables[0])
        for table in tables:
            for name in filter(None, columns):
                _require(table, name)
        stored = None
        if columns.path is None:
            columnar = [table for table in tables if isinstance(table, ColumnarTable)]
            if len(columnar) < len(tables):
                raise DataError(f"manifest: {path} is CSV, which cannot hold files: give path_column")
            stored = StoredBytes(columnar, columns.bytes or "", scratch)
        return OpenManifest(self, path, tables, columns, stored)

    def _columns(self, table: Table) -> Columns:
        there = table.column_names()
        optional = {
            name: getattr(self, f"{name}_column") or (name if name in there else None)
            for name in ("path", "bytes", "split", "key", "super_class")
        }
        if self.path_column is not None:
            optional["bytes"] = None
        elif optional["bytes"] is not None:
            optional["path"] = None
        elif optional["path"] is None:
            raise DataError(
                f"manifest: {table.path} has no column 'path' or 'bytes' (it has: {', '.join(there)}): "
                "give path_column or bytes_column"
            )
        return Columns(label=self.label_column, **optional)


class Columns(NamedTuple):
    """Which column holds what; None where no column does."""

    label: str
    path: str | None
    bytes: str | None
    split: str | None
    key: str | None
    super_class: str | None


def _require(table: Table, column: str) -> None:
    there = table.column_names()
    if column not in there:
        raise DataError(f"manifest: {table.path} has no column {column!r} (it has: {', '.join(there)})")


class OpenManifest:
    """The samples of a manifest, see ``OpenSource``."""

    def __init__(
        self, source: Manifest, path: Path, tables: list[Table], columns: Columns, stored: StoredBytes | None
    ) -> None:
        self._source = source
        self._folder = path if path.is_dir() else path.parent
        self._tables = tables
        self._stored = stored
        self.makes_keys = columns.key is None
        # What is needed in a row for it to be a sample; super_class is not.
        self._needed = [name for name in ("path", "label", "split", "key") if getattr(columns, name) is not None]
        self._fields = [*self._needed, *(["super_class"] if columns.super_class else [])]
        self._names = [getattr(columns, field) for field in self._fields]
        root = source.root if source.root is not None else str(self._folder)
        self._root = root.rstrip("/") if "://" in root else str(Path(root).expanduser().absolute())
        # There are few classes and many rows.
        self._split_of_class = lru_cache(2**20)(
            partial(split_of_class, train_fraction=source.train_fraction, seed=source.seed)
        )

    def items(self) -> Iterator[Item]:
        """See ``OpenSource``."""
        count = 0
        for number, table in enumerate(self._tables):
            for row, values in table.rows(self._names):
                yield self._item(number, row, values)
                count += 1
        if not count:
            raise DataError(f"manifest: {self._source.path} lists no sample")

    def load(self, ref: str) -> Sequence[bytes]:
        """See ``OpenSource``."""
        kind, _, place = ref.partition(":")
        if self._stored is not None:
            data = self._stored.read(int(kind), int(place))
            if data is None:
                raise ValueError("its row has no bytes")
            return [data]
        return [_read_url(ref) if "://" in ref else Path(ref).read_bytes()]

    def _item(self, number: int, row: int, values: Values) -> Item:
        named = dict(zip(self._fields, values, strict=True))
        path = named.get("path") or ""
        missing = next((field for field in self._needed if not named[field]), None)
        class_name = named["label"] or ""
        return Item(
            key=self._key(number, row, named.get("key") or "", path),
            class_name=class_name,
            split=self._split(named, class_name),
            ref=self._ref(number, row, named, path) if missing is None else self._tables[number].place(row).rstrip(","),
            extension=self._extension(path),
            super_class=named.get("super_class") or "",
            defect="" if missing is None else f"its row has no {missing}",
        )

    def _split(self, named: dict[str, str | None], class_name: str) -> str:
        if "split" in named:
            return named["split"] or TRAIN_SPLIT
        return self._split_of_class(class_name)

    def _key(self, number: int, row: int, key: str, path: str) -> str:
        if key:
            return readable(key).replace(".", "_")
        if path:
            return key_of(_without_protocol(path))
        name = f"{row:08d}"
        if len(self._tables) > 1:
            name = f"{self._tables[number].path.relative_to(self._folder).with_suffix('')}/{name}"
        return readable(name).replace(".", "_")

    def _ref(self, number: int, row: int, named: dict[str, str | None], path: str) -> str:
        if not path:
            return f"{number}:{row}"
        return path if "://" in path or path.startswith("/") else f"{self._root}/{path}"

    def _extension(self, path: str) -> str:
        extension, kind = extension_of(_without_protocol(path)), self._source.input
        # "scan.0001" has none.
        return extension if extension in EXTENSIONS[kind] else self._source.extension or _USUAL_EXTENSION[kind]


def _without_protocol(path: str) -> str:
    """The part of a URL that names a file; a path as it is."""
    if path.startswith(("http://", "https://")):
        parts = urlsplit(path)
        return f"{parts.netloc.rpartition('@')[2]}{parts.path}"  # the query may hold a signature
    return path.rpartition("://")[2]


def _read_url(url: str) -> bytes:
    """The file at a URL; a server that does not answer is asked again for a while.

    Raises:
        FileNotFoundError: there is none.
        ShardError: the server does not answer.
        ValueError: it cannot be had, whenever it is tried; the URL is not in the message.
    """
    try:
        return _RETRY.call(lambda: _read_once(url), url)
    except MissingFileError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from None
    except ShardError:
        raise
    except DataError as error:
        raise ValueError(str(error).replace(shown(url), "it")) from None


def _read_once(url: str) -> bytes:
    with clear_errors(url):
        file_system, path = connect(url, {}, READ_TIMEOUT_SECONDS)
        return file_system.cat_file(path)
