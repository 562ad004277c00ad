"""Read a tar file from front to back in constant memory, and tell where it is damaged."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from dmlscale.data.tar import members_of

_CHUNK = 2**20  # bytes read at a time


class DamagedTarError(Exception):
    """What follows cannot be read as a tar file; the message says where, as "is ..." of the file."""


class TarMembers:
    """Iterator over the members of a tar file, in one pass.

    Args:
        file: open for reading; stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = os.fstat(file.fileno()).st_size
        self._end = 0
        self._members = self._read()

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        return self

    def __next__(self) -> tarfile.TarInfo:
        """The next member.

        Raises:
            DamagedTarError: a header cannot be understood, or the file ends within a member.
        """
        return next(self._members)

    def _read(self) -> Iterator[tarfile.TarInfo]:
        try:
            with tarfile.open(fileobj=self._file, mode="r:", encoding="utf-8") as tar:
                for member in members_of(tar):
                    self._end = member.offset_data + member.size
                    yield member
                self._end = tar.offset
        except (tarfile.TarError, ValueError, OverflowError) as error:  # tarfile's numbers and texts raise the last two
            raise DamagedTarError(f"is truncated or damaged behind byte {self._end:,} ({error})") from None

    def content(self, member: tarfile.TarInfo) -> Iterator[bytes]:
        """The bytes of a member, in pieces.

        Raises:
            DamagedTarError: the file ends within them.
        """
        self._file.seek(member.offset_data)
        left = member.size
        while left:
            chunk = self._file.read(min(left, _CHUNK))
            if not chunk:
                raise DamagedTarError(f"is truncated at byte {self.num_bytes:,}")
            left -= len(chunk)
            yield chunk

    def check_end(self) -> None:
        """Whether the archive really ends where the iterator did: for tarfile it also does at a damaged header.

        Raises:
            DamagedTarError: there is no mark of the end, or something follows.
        """
        self._file.seek(self._end)
        if self._end + tarfile.BLOCKSIZE > self.num_bytes:
            raise DamagedTarError(f"is truncated at byte {self.num_bytes:,}: it has no mark of its end")
        while chunk := self._file.read(_CHUNK):
            if chunk.count(0) != len(chunk):
                raise DamagedTarError(f"is damaged at byte {self._end:,}, where a tar header should be")
