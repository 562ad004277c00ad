"""Public datasets as they are downloaded: where the files lie, and lists in text files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from dmlscale.data.errors import DataError
from dmlscale.data.originals.archives import open_files
from dmlscale.data.originals.files import SEARCH_DEPTH, Files, FolderFiles
from dmlscale.data.sources import Item


class OfficialCount(NamedTuple):
    """What a split has when nothing is missing."""

    num_samples: int
    num_classes: int


@dataclass(frozen=True)
class ListedFiles:
    """An open source whose samples are single files of one root, named by their refs."""

    files: Files
    list_items: Callable[[], Iterator[Item]]

    def items(self) -> Iterator[Item]:
        """See ``OpenSource``."""
        return self.list_items()

    def load(self, ref: str) -> Sequence[bytes]:
        """See ``OpenSource``."""
        return (self.files.read(ref),)


@dataclass(frozen=True)
class Download:
    """A public dataset.

    Args:
        name: of its source, for messages.
        address: where it is downloaded.
    """

    name: str
    address: str

    def find(self, path: str, scratch: Path, *markers: str, archives: Sequence[str]) -> Files:
        """The files as seen from the folder that holds a marker; it may lie in an archive.

        Args:
            path: of a folder, or of an archive whose folder holds the rest.
            scratch: for archives that must be unpacked.
            markers: file names, or folder names with "/" at their ends; the first that is found counts.
            archives: official names of the archives that have it.

        Raises:
            DataError: nothing of the kind is there, or an archive is damaged.
        """
        place = Path(path).expanduser()
        for files in self._candidates(place, scratch, archives):
            # Around an archive that was named there may lie anything, so only its own folder is looked into.
            is_beside = isinstance(files, FolderFiles) and place.is_file() and files.root == place.parent
            for marker in markers:
                found = files.find(marker, depth=0 if is_beside else SEARCH_DEPTH)
                if found is not None:
                    return found
        wanted = " or ".join([*markers[:1], *archives])
        raise DataError(
            f"{self.name}: found no {wanted} in {place} or {SEARCH_DEPTH} folders below: set path to the folder of the "
            f"download from {self.address} (archives or unpacked)"
        )

    def _candidates(self, place: Path, scratch: Path, archives: Sequence[str]) -> Iterator[Files]:
        if not place.exists():
            raise DataError(f"{self.name}: there is no {place}: set path to the download from {self.address}")
        if place.is_file():
            yield open_files(place, scratch)
        folder = FolderFiles(place if place.is_dir() else place.parent)
        yield folder
        for archive in archives:
            found = folder.find(archive, depth=SEARCH_DEPTH if place.is_dir() else 0)
            if found is not None:
                yield open_files(found.root / archive, scratch)

    def rows(
        self, files: Files, name: str, columns: Sequence[str], *, integers: Sequence[str] = (), spaced: str = ""
    ) -> Iterator[tuple[str, ...]]:
        """The rows of a list whose columns are separated by white space.

        A first line with the number of rows, and one with the names of the columns, are no rows.

        Args:
            files: that have it.
            name: of the list.
            columns: names of the columns.
            integers: columns that must be whole numbers.
            spaced: the first or last column, if its values may have spaces.

        Raises:
            DataError: there is no such list, it is cut off, empty, or a line does not have these columns.
        """
        lines = StringIO(self._text(files, name), newline=None)
        whole = [columns.index(column) for column in integers]
        stated, count = 0, 0
        for number, line in enumerate(lines, start=1):
            most = len(columns) - 1 if spaced else -1
            values = line.strip().rsplit(None, most) if spaced == columns[0] else line.strip().split(None, most)
            if not values or values == list(columns):
                continue
            if number == 1 and len(values) == 1 and len(columns) > 1 and values[0].isdecimal():
                stated = int(values[0])
                continue
            if len(values) != len(columns) or not all(values[place].isdecimal() for place in whole):
                raise DataError(
                    f"{files.location(name)}, line {number} is {line.strip()[:80]!r}, must have the columns "
                    f"{', '.join(columns)}: restore the file from {self.address}"
                )
            count += 1
            yield tuple(values)
        if not count or count != (stated or count):
            first_line = f", its first line tells {stated}" if stated else ""
            raise DataError(f"{files.location(name)} has {count} rows{first_line}: restore it from {self.address}")

    def _text(self, files: Files, name: str) -> str:
        """A text file, in UTF-8 or else in Windows-1252."""
        try:
            data = files.read(name)
        except OSError as error:
            raise DataError(
                f"{self.name}: cannot read {files.location(name)} ({error.strerror}): restore it from {self.address}"
            ) from None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            return data.decode("cp1252", "replace")
