"""Samples by row id, straight from the shards: one ``pread`` each, no tar parsing."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from dmlscale.data.decode import decode
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.types import Sample

_MAX_OPEN_SHARDS = 128


class _Shard:
    """An open shard; closed when the last thread that reads from it has let go."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)


class Reader:
    """Reads and decodes samples of an index.

    Owns the descriptors of the shards it has open. Reads carry their offset, so threads and forked processes
    may share one; a pickled one opens the shards again.

    Args:
        index: the dataset, or any view of it: rows are addressed by their global id.
        channels: 1 for grey, 3 for RGB; pictures of the other kind are converted.
        cache_bytes: keep decoded pictures up to this much memory; small datasets are then decoded once.
    """

    def __init__(self, index: Index, *, channels: int, cache_bytes: int = 0) -> None:
        if channels not in (1, 3):
            raise DataError(f"channels={channels}, must be 1 (grey) or 3 (RGB)")
        self._index = index
        self._channels = channels
        self._cache_bytes = cache_bytes
        self._reset()

    def _reset(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._cache: dict[int, Tensor] = {}
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        private = ("_lock", "_open", "_cache", "_cached_bytes")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def close(self) -> None:
        """Let go of shards and cached pictures; the next read opens them again."""
        with self._lock:
            self._open.clear()
            self._cache.clear()
            self._cached_bytes = 0

    def sample(self, row_id: int) -> Sample:
        """One sample: key, image (channels, height, width) uint8, label."""
        return Sample(self._index.key(row_id), self.image(row_id), int(self._index.columns.labels[row_id]))

    def image(self, row_id: int) -> Tensor:
        """The picture of one row, (channels, height, width) uint8; not to be changed in place.

        Raises:
            DataError: the shard is shorter than the index says, or the bytes are no picture.
        """
        cached = self._cache.get(row_id)
        if cached is not None:
            return cached
        data = self.read(row_id)
        try:
            image = decode(data, self._channels)
        except ValueError as error:
            raise DataError(f"{self._where(row_id)} is no readable picture: {error}") from None
        if self._cached_bytes + image.nbytes <= self._cache_bytes:
            self._cached_bytes += image.nbytes
            self._cache[row_id] = image
        return image

    def read(self, row_id: int) -> bytearray:
        """The undecoded bytes of one row.

        Raises:
            DataError: the shard cannot be opened or is shorter than the index says.
        """
        columns = self._index.columns
        data = bytearray(int(columns.sizes[row_id]))
        try:
            shard = self._shard(int(columns.shards[row_id]))
            num_read = os.preadv(shard.descriptor, [data], int(columns.offsets[row_id]))
        except OSError as error:
            raise DataError(f"{self._where(row_id)} cannot be read: {error.strerror}") from None
        if num_read != len(data):
            raise DataError(
                f"{self._where(row_id)} is cut off: {num_read} of {len(data)} bytes; restore the shard, "
                f"or delete {self._index.root} and pack the dataset again"
            )
        return data

    def _shard(self, position: int) -> _Shard:
        with self._lock:
            shard = self._open.get(position)
            if shard is None:
                shard = self._open[position] = _Shard(self._index.root / self._index.shard_names[position])
                if len(self._open) > _MAX_OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(position)
            return shard

    def _where(self, row_id: int) -> str:
        offset = int(self._index.columns.offsets[row_id])
        return f"sample {self._index.key(row_id)!r} (shard {self._index.shard_path(row_id)}, offset {offset})"
