"""Samples by row id, straight from the shards: one ``pread`` each, no tar parsing."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Sequence
from threading import Lock
from typing import Any, BinaryIO, Literal

from torch import Tensor

from dmlscale.data.decoding.decode import Decoder
from dmlscale.data.errors import DataError
from dmlscale.data.fingerprint import content_hash
from dmlscale.data.index import Index
from dmlscale.data.tar import split_parts
from dmlscale.data.types import Sample

_MAX_OPEN_SHARDS = 128


LossKind = Literal["shard cannot be had", "cut off", "changed since packing", "cannot be decoded"]


class LostSampleError(DataError):
    """One sample cannot be had; others can."""

    def __init__(self, kind: LossKind, message: str) -> None:
        super().__init__(message)
        self.kind: LossKind = kind


class Reader:
    """Reads and decodes samples of an index.

    Owns the shards it has open. Reads carry their offset, so threads and forked processes may share one; a pickled one
    opens the shards again. A shard that could not be had is not asked for again: each attempt may take minutes.

    Args:
        index: the dataset, or any view of it: rows are addressed by their global id.
        decoder: of its samples.
        cache_bytes: keep decoded samples up to this much memory; small datasets are then decoded once.
    """

    def __init__(self, index: Index, decoder: Decoder, *, cache_bytes: int = 0) -> None:
        self._index = index
        self._decoder = decoder
        self._cache_bytes = cache_bytes
        self._reset()

    def _reset(self) -> None:
        self._lock = Lock()
        self._open: OrderedDict[int, BinaryIO] = OrderedDict()
        self._lost_shards: dict[int, str] = {}  # why: an error that is raised again and again would keep what it saw
        self._fetched_again: set[int] = set()
        self._cache: dict[int, Tensor] = {}
        self._cached_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        private = ("_lock", "_open", "_lost_shards", "_fetched_again", "_cache", "_cached_bytes")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def close(self) -> None:
        """Let go of shards and decoded samples; the next read opens them again."""
        with self._lock:
            self._open.clear()  # a file is closed when the last thread that reads from it has let go
            self._lost_shards.clear()
            self._cache.clear()
            self._cached_bytes = 0

    def sample(self, row_id: int) -> Sample:
        """One sample: key, decoded content, label."""
        return Sample(self._index.key(row_id), self.decoded(row_id), int(self._index.columns.labels[row_id]))

    def decoded(self, row_id: int) -> Tensor:
        """What the decoder makes of one row; not to be changed in place.

        Raises:
            LostSampleError: the shard cannot be had, the bytes are not those that were packed, or cannot be decoded.
        """
        cached = self._cache.get(row_id)
        if cached is not None:
            return cached
        parts = self.read(row_id)
        try:
            decoded = self._decoder(parts)
        except ValueError as error:
            raise self._lost(row_id, "cannot be decoded", f"cannot be decoded: {error}") from None
        if self._cached_bytes + decoded.nbytes <= self._cache_bytes:
            self._cached_bytes += decoded.nbytes
            self._cache[row_id] = decoded
        return decoded

    def read(self, row_id: int) -> Sequence[bytes | bytearray]:
        """The files of one row, compared with what was packed.

        Raises:
            LostSampleError: the shard cannot be had or is cut off, or the bytes have changed.
        """
        try:
            return self._read(row_id)
        except LostSampleError as error:
            # A copy in the cache may have been damaged since it was fetched; where the shard lies it may be good.
            if error.kind not in ("cut off", "changed since packing") or not self._fetch_again(row_id):
                raise
        return self._read(row_id)

    def keep_only(self, shards: Collection[int]) -> None:
        """Let go of all other shards: the cache cannot make room by removing one that is open."""
        with self._lock:
            for number in self._open.keys() - set(shards):
                del self._open[number]

    def _read(self, row_id: int) -> Sequence[bytes | bytearray]:
        columns = self._index.columns
        number, offset, size = (int(c[row_id]) for c in (columns.shards, columns.offsets, columns.sizes))
        if not 0 <= offset <= offset + size <= self._index.shards.sizes[number]:
            what = "lies outside of its shard, as the index tells it: pack the dataset again"
            raise self._lost(row_id, "changed since packing", what)
        try:
            shard = self._shard(number)
            data = bytearray(size)
            num_read = os.preadv(shard.fileno(), [data], offset)
        except (OSError, DataError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise self._lost(row_id, "shard cannot be had", f"cannot be read: {reason}") from None
        if num_read != len(data):
            what = f"is cut off: {num_read} of {len(data)} bytes; restore the shard or pack the dataset again"
            raise self._lost(row_id, "cut off", what)
        num_parts = int(columns.num_parts[row_id])
        try:
            parts: Sequence[bytes | bytearray] = [data] if num_parts == 1 else split_parts(data, num_parts)
        except DataError as error:
            raise self._lost(row_id, "changed since packing", f"has changed since it was packed: {error}") from None
        if content_hash(parts) != int(columns.hashes[row_id]):
            what = "has changed since it was packed: restore the shard or pack the dataset again"
            raise self._lost(row_id, "changed since packing", what)
        return parts

    def _fetch_again(self, row_id: int) -> bool:
        """Drop the copy of a shard that is not on this machine; once. Whether that may help."""
        number = int(self._index.columns.shards[row_id])
        with self._lock:
            is_first = number not in self._fetched_again
            self._fetched_again.add(number)
            if is_first:
                self._open.pop(number, None)
                return self._index.discard_copy(number)
        return False

    def _lost(self, row_id: int, kind: LossKind, what: str) -> LostSampleError:
        return LostSampleError(kind, f"{self._index.where(row_id)} {what}")

    def _shard(self, number: int) -> BinaryIO:
        with self._lock:
            shard = self._open.get(number)
            if shard is not None:
                self._open.move_to_end(number)
                return shard
            lost = self._lost_shards.get(number)
        if lost is not None:
            raise DataError(lost)
        try:
            shard = self._index.open_shard(number)  # may take long, so other shards can be read meanwhile
        except DataError as error:
            with self._lock:
                self._lost_shards[number] = str(error)
            raise
        with self._lock:
            shard = self._open.setdefault(number, shard)
            if len(self._open) > _MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
            return shard
