"""Shards: tar files that any WebDataset reader takes, and the place of each sample in them."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from dmlscale.data.errors import DataError


class Place(NamedTuple):
    """Where a sample lies, as the index tells it."""

    offset: int  # of its bytes; of the header of its first part, if it has several
    size: int
    num_parts: int


def add_sample(blocks: bytearray, key: str, extension: str, parts: Sequence[bytes], label: int) -> Place:
    """Append the members of one sample to a piece of a tar file.

    ``webdataset.TarWriter`` does not tell where a sample's bytes end up, which is what the index is for; hence the
    members that WebDataset expects, by hand: ``<key>.<extension>`` (``<key>.00.<extension>`` and so on where there are
    several) and ``<key>.cls``.

    Returns:
        Its place in ``blocks``.
    """
    if len(parts) == 1:
        offset = _add(blocks, f"{key}.{extension}", parts[0])
        place = Place(offset, len(parts[0]), 1)
    else:
        begin, width = len(blocks), max(2, len(str(len(parts) - 1)))
        for number, part in enumerate(parts):
            offset = _add(blocks, f"{key}.{number:0{width}d}.{extension}", part)
        place = Place(begin, offset + len(parts[-1]) - begin, len(parts))
    _add(blocks, f"{key}.cls", str(label).encode())
    return place


def _add(blocks: bytearray, name: str, data: bytes) -> int:
    """Append a member; the offset of its bytes."""
    # A fresh TarInfo has mtime 0 and no owner: the same samples give the same shard.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    # GNU headers take names of any length.
    blocks += member.tobuf(tarfile.GNU_FORMAT, "utf-8")
    offset = len(blocks)
    blocks += data
    blocks += bytes(-len(data) % tarfile.BLOCKSIZE)
    return offset


def split_parts(span: bytes | bytearray, num_parts: int) -> list[bytes]:
    """The files of a sample of several parts.

    Args:
        span: the bytes that the index tells, from the header of the first part to the end of the last.
        num_parts: how many the index tells.

    Raises:
        DataError: they are not in there.
    """
    padded = io.BytesIO(span + bytes(-len(span) % tarfile.BLOCKSIZE))  # tarfile wants whole blocks
    try:
        with tarfile.open(fileobj=padded, mode="r:") as tar:
            files = [tar.extractfile(member) for member in tar if member.isfile()]
            parts = [file.read() for file in files if file is not None]
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"its tar headers are damaged ({error})") from None
    if len(parts) != num_parts:
        raise DataError(f"it has {len(parts)} parts where the index tells {num_parts}")
    return parts


def members_of(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members of an open archive, from front to back, in the memory of one: tarfile by itself keeps them all."""
    while (member := archive.next()) is not None:
        yield member
        archive.members.clear()  # type: ignore[attr-defined]  # the stubs lack it


class ShardFile:
    """A shard being written; it appears under its name when it is complete.

    Owns the file; leaving a ``with`` block without ``publish`` deletes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")
        self._file = self._partial.open("wb")
        self.size = 0

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._file.close()
        finally:  # what is left to write fails too where the disk is full
            self._partial.unlink(missing_ok=True)

    def append(self, blocks: bytes) -> None:
        """Append whole members."""
        self._file.write(blocks)
        self.size += len(blocks)

    def publish(self) -> int:
        """Close the archive and give it its name; its size in bytes."""
        end = 2 * tarfile.BLOCKSIZE
        self._file.write(bytes(end + -(self.size + end) % tarfile.RECORDSIZE))
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        self._partial.replace(self._path)
        return size
