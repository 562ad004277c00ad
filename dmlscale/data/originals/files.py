"""The files of a dataset by name, in a folder or, with the same names in the same order, in an archive."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dmlscale.data.errors import DataError

SEARCH_DEPTH = 2  # folders that may lie around the one that is looked for


class Files(Protocol):
    """Files by name: parts joined by "/", relative to a root. Hidden files and those of macOS are not listed."""

    def names(self) -> Iterator[str]:
        """The name of every file, folder by folder, sorted.

        Raises:
            DataError: a folder cannot be listed.
        """

    def read(self, name: str) -> bytes:
        """One file. Threads and forked processes may read at the same time.

        Raises:
            OSError: there is no such file, or it cannot be read now.
            ValueError: it is damaged in its archive.
        """

    def location(self, name: str) -> str:
        """Where the file lies, for a message."""

    def find(self, marker: str, depth: int = SEARCH_DEPTH) -> Files | None:
        """The same files as seen from the outermost folder that holds ``marker``; None if there is none.

        Args:
            marker: path of a file, or of a folder with "/" at its end.
            depth: how many folders may lie around it.
        """


@dataclass(frozen=True)
class FolderFiles:
    """Files of a folder. Links are followed, unless they lead to a folder that they lie in."""

    root: Path

    def names(self) -> Iterator[str]:
        """See ``Files``; a link to nothing is listed, and fails when it is read."""
        return _walk(self.root, "", ())

    def read(self, name: str) -> bytes:
        """See ``Files``."""
        return (self.root / name).read_bytes()

    def location(self, name: str) -> str:
        """See ``Files``."""
        return str(self.root / name)

    def find(self, marker: str, depth: int = SEARCH_DEPTH) -> FolderFiles | None:
        """See ``Files``."""
        level = [self.root]
        for _ in range(depth + 1):
            for folder in level:
                place = folder / marker
                if place.is_dir() if marker.endswith("/") else place.is_file():
                    return FolderFiles(folder)
            level = [child for folder in level for child in _folders_in(folder)]
        return None


@dataclass(frozen=True)
class Subfolder:
    """Files below one folder of others."""

    files: Files
    prefix: str  # "", or a path that ends with "/"

    def names(self) -> Iterator[str]:
        """See ``Files``."""
        return (name.removeprefix(self.prefix) for name in self.files.names() if name.startswith(self.prefix))

    def read(self, name: str) -> bytes:
        """See ``Files``."""
        return self.files.read(self.prefix + name)

    def location(self, name: str) -> str:
        """See ``Files``."""
        return self.files.location(self.prefix + name)

    def find(self, marker: str, depth: int = SEARCH_DEPTH) -> Files | None:
        """See ``Files``."""
        return find_in_names(self, marker, depth)


def find_in_names(files: Files, marker: str, depth: int) -> Subfolder | None:
    """``Files.find`` for files that have a list of names and no folders."""
    prefixes = set()
    for name in files.names():
        at = f"/{name}".find(f"/{marker}")
        is_whole = marker.endswith("/") or len(name) == at + len(marker)
        if at >= 0 and is_whole and name.count("/", 0, at) <= depth:
            prefixes.add(name[:at])
    return Subfolder(files, min(prefixes, key=lambda prefix: (prefix.count("/"), prefix))) if prefixes else None


def clean_name(name: str) -> str:
    r"""A member's name as a path below a root: "./a//b" and "a\\b" are "a/b"."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def visible_sorted(names: Iterable[str]) -> list[str]:
    """Names that are not hidden, in the order of ``Files.names``."""
    visible = (name for name in names if not any(map(_is_hidden, name.split("/"))))
    # No name has the character 0, which is below all others: so names are ordered folder by folder.
    return sorted(visible, key=lambda name: name.replace("/", "\0"))


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _walk(folder: Path, prefix: str, around: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Files below ``folder``; ``around`` holds device and number of the folders it lies in."""
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in around:
            return
        with os.scandir(folder) as entries:
            visible = sorted((entry.name, entry.is_dir()) for entry in entries if not _is_hidden(entry.name))
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}") from None
    for name, is_folder in visible:
        if is_folder:
            yield from _walk(folder / name, f"{prefix}{name}/", (*around, identity))
        else:
            yield f"{prefix}{name}"


def _folders_in(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted; none where it may not be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if not _is_hidden(entry.name) and entry.is_dir())
    except OSError:
        return []
