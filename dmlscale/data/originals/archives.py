"""Archives of files: zip and tar are read in place, a compressed tar is unpacked once."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import logging
import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from dmlscale.data.errors import DataError
from dmlscale.data.originals.files import SEARCH_DEPTH, Files, FolderFiles, clean_name, find_in_names, visible_sorted
from dmlscale.data.originals.scratch_names import scratch_name
from dmlscale.data.tar import members_of

_logger = logging.getLogger(__name__)

_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile)
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"  # how they begin


def open_files(path: Path, scratch: Path) -> Files:
    """The files of a folder or of an archive.

    Args:
        path: a folder, or a zip, tar, tar.gz, tar.bz2 or tar.xz file; its first bytes tell which.
        scratch: a compressed tar can only be read from front to back, so it is unpacked here unless it was before; of a
            plain tar the places of its files are kept here.

    Raises:
        DataError: it is damaged, of another kind, or cannot be unpacked.
    """
    if path.is_dir():
        return FolderFiles(path)
    try:
        with path.open("rb") as file:
            start = file.read(5)
        if start.startswith((_GZIP, _BZIP2, _XZ)):
            return FolderFiles(_unpacked(path, start, scratch))
        return ZipFiles(path) if start.startswith(b"PK") else TarFiles(path, scratch)
    except tarfile.FilterError as error:
        raise DataError(
            f"{path} is not unpacked: {error}, which no dataset needs. Take it from whom you trust; nothing was "
            f"written outside of {scratch}"
        ) from None
    except _DAMAGE as error:
        raise DataError(
            f"{path} is damaged, or no zip or tar file (a web page saved under its name?): {error}; download it again, "
            f"or unpack it yourself and give the folder"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path} or unpack it into {scratch}: {error}") from None


class ZipFiles:
    """Files of a zip file.

    Owns an open handle in each process that reads; it is closed with the object.

    Raises:
        zipfile.BadZipFile: it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()
        members = {clean_name(info.filename): info for info in self._zip.infolist() if not info.is_dir()}
        self._members = {name: members[name] for name in visible_sorted(members)}

    def _open(self) -> None:
        self._zip = zipfile.ZipFile(self._path)
        self._process = os.getpid()

    def names(self) -> Iterator[str]:
        """See ``Files``."""
        return iter(self._members)

    def read(self, name: str) -> bytes:
        """See ``Files``."""
        if name not in self._members:
            raise _missing(self.location(name))
        if self._process != os.getpid():  # a forked process would move the place its parent reads at
            self._open()
        try:
            return self._zip.read(self._members[name])
        # RuntimeError: it has a password. NotImplementedError: a compression that Python lacks.
        except (*_DAMAGE, RuntimeError, NotImplementedError) as error:
            reason = "is damaged" if isinstance(error, _DAMAGE) else "has a password or an unknown compression"
            raise ValueError(f"{reason} in the zip file") from error

    def location(self, name: str) -> str:
        """See ``Files``."""
        return f"{name} in {self._path}"

    def find(self, marker: str, depth: int = SEARCH_DEPTH) -> Files | None:
        """See ``Files``."""
        return find_in_names(self, marker, depth)


class TarFiles:
    """Files of an uncompressed tar file. Links in it are left out.

    Args:
        path: of the file.
        scratch: folder for where its files start: it takes a pass over the file to know.

    Raises:
        tarfile.TarError: it is damaged.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self._path = path
        stored = scratch / f"{scratch_name(path)}.json"
        if not stored.is_file():
            found = _places_in_tar(path)
            scratch.mkdir(parents=True, exist_ok=True)
            partial = stored.with_name(f"{stored.name}.{os.getpid()}")
            partial.write_text(json.dumps({name: found[name] for name in visible_sorted(found)}))
            partial.replace(stored)
        self._places: Mapping[str, tuple[int, int]] = json.loads(stored.read_text())

    def names(self) -> Iterator[str]:
        """See ``Files``."""
        return iter(self._places)

    def read(self, name: str) -> bytes:
        """See ``Files``."""
        if name not in self._places:
            raise _missing(self.location(name))
        offset, size = self._places[name]
        with self._path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise ValueError("is cut off in the tar file")
        return data

    def location(self, name: str) -> str:
        """See ``Files``."""
        return f"{name} in {self._path}"

    def find(self, marker: str, depth: int = SEARCH_DEPTH) -> Files | None:
        """See ``Files``."""
        return find_in_names(self, marker, depth)


def _places_in_tar(path: Path) -> Mapping[str, tuple[int, int]]:
    """Offset and size of each file."""
    places = {}
    with tarfile.open(path, "r:") as archive:
        for member in members_of(archive):
            if member.isreg() and not member.issparse():
                places[clean_name(member.name)] = (member.offset_data, member.size)
        end = archive.offset
    with path.open("rb") as file:
        file.seek(end)
        # tarfile takes anything that is no header for the end; it should be a block of zeros.
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"neither a header nor the end at byte {end}")
    return places


def _unpacked(path: Path, start: bytes, scratch: Path) -> Path:
    """The folder that a compressed tar was unpacked into; it gets its name when it is complete."""
    folder = scratch / scratch_name(path)
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial")
    if partial.exists():  # of a process that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    _logger.info("unpacking %s into %s", path, folder)
    with _decompressed(path, start) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=2**20) as archive:
                for member in members_of(archive):
                    archive.extract(member, partial, filter="data")  # refuses what would land outside the folder
            # tarfile takes anything that is no header for the end; the checksum of the whole comes last.
            while stream.read(2**20):
                pass
        except OSError as error:
            if error.errno is None:  # the decompressor's; those of the disk have a number
                raise tarfile.ReadError(str(error)) from None
            raise
    partial.rename(folder)
    return folder


def _decompressed(path: Path, start: bytes) -> gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    if start.startswith(_GZIP):
        return gzip.open(path)
    return bz2.open(path) if start.startswith(_BZIP2) else lzma.open(path)


def _missing(location: str) -> OSError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
