"""Items of a source, parked on disk between reading and packing: the order of packing needs all of them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from dmlscale.data.errors import DataError
from dmlscale.data.sources import SourceItem


class Spool:
    """Append-only store of items; their bytes in one file, everything else in memory.

    Owns its file's descriptor, and gives it up at the end of a ``with`` block; the file is the caller's.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.keys: list[str] = []
        self.extensions: list[str] = []
        self.class_names: list[str] = []
        self.splits: list[str] = []
        self._file = file
        self._ends = [0]
        self._seen: set[str] = set()

    @classmethod
    def create(cls, path: Path) -> Spool:
        """A new, empty spool at ``path``, locked for as long as it is open."""
        file = path.open("w+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        return cls(file)

    @staticmethod
    def is_abandoned(path: Path) -> bool:
        """Whether there is a spool at ``path`` whose process has died."""
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # no such file, or its owner holds the lock
            return False
        return True

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self.keys)

    def append(self, item: SourceItem) -> None:
        """Store one item.

        Raises:
            DataError: its key was there before, or cannot be the name of a WebDataset sample.
        """
        if item.key in self._seen:
            raise DataError(f"key {item.key!r} comes twice from the source: keys must be unique in a dataset")
        if not item.key or "." in item.key:
            raise DataError(f"key {item.key!r} is empty or has a dot, where WebDataset starts the extension: rename it")
        if not item.data:
            raise DataError(f"sample {item.key!r} has no bytes")
        self._seen.add(item.key)
        self.keys.append(item.key)
        self.extensions.append(item.extension)
        self.class_names.append(item.class_name)
        self.splits.append(item.split)
        self._file.write(item.data)
        self._ends.append(self._ends[-1] + len(item.data))

    def read(self, position: int) -> bytes:
        """The bytes of the item that was appended as number ``position``."""
        self._file.flush()
        begin, end = self._ends[position], self._ends[position + 1]
        return os.pread(self._file.fileno(), end - begin, begin)
