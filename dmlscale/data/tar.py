"""Shards: tar files that any WebDataset reader takes, and the place of each sample in them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from dmlscale.data.layout import shard_name


class ShardWriter:
    """The shards of one split, one after the other, each closed once it is large enough.

    ``webdataset.TarWriter`` does not tell where a sample's bytes ended up, which is what the index is for;
    hence ``tarfile`` with the members that WebDataset expects: ``<key>.<extension>`` and ``<key>.cls``.

    Owns the open shard; a ``with`` block closes it.
    """

    def __init__(self, folder: Path, split: str, shard_size_bytes: int) -> None:
        self._folder = folder
        self._split = split
        self._shard_size_bytes = shard_size_bytes
        self._number = -1
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def write(self, key: str, extension: str, data: bytes, label: int) -> tuple[str, int]:
        """Append one sample.

        Returns:
            File name of the shard, and offset of ``data`` in it.
        """
        if self._tar is not None and self._tar.offset >= self._shard_size_bytes:
            self._close()
        if self._tar is None:
            self._number += 1
            path = self._folder / shard_name(self._split, self._number)
            # GNU headers take names of any length.
            self._tar = tarfile.open(path, "w:", format=tarfile.GNU_FORMAT)  # noqa: SIM115, closed in _close
        offset = _add(self._tar, f"{key}.{extension}", data)
        _add(self._tar, f"{key}.cls", str(label).encode())
        return shard_name(self._split, self._number), offset

    def _close(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member; the offset of its bytes."""
    # A fresh TarInfo has mtime 0 and no owner: the same samples give the same shard.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - padded
