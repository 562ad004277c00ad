"""A piece of a shard: what one process makes of a few listed samples. Pieces are joined without looking inside."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dmlscale.data.decoding.check import check_bytes
from dmlscale.data.errors import DataError
from dmlscale.data.fingerprint import content_hash
from dmlscale.data.packing.item_table import ListedSample
from dmlscale.data.sources import OpenSource, Source
from dmlscale.data.storage.transfer_errors import ShardError
from dmlscale.data.tar import Place, add_sample
from dmlscale.redaction import shown

# What a file itself is to blame for. Others may pass (a disk that hiccups, no memory, too many open files): a sample
# that is lost to one of them would never come back.
_LASTING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)


class Reject(NamedTuple):
    """A sample that is not packed."""

    position: int  # in the list of the source
    reason: str


class Packed(NamedTuple):
    """A sample in a fragment."""

    position: int  # in the list of the source
    place: Place  # in the fragment
    content_hash: int


@dataclass(frozen=True)
class Fragment:
    """Whole tar members of consecutive samples."""

    blocks: bytes
    samples: list[Packed]
    rejects: list[Reject]
    num_listed: int


class Worker:
    """Loads, checks and lays out samples; one in each process.

    Args:
        source: that lists them.
        scratch: where it may have unpacked files.
        check: decode every sample, and reject those that do not.
    """

    def __init__(self, source: Source, scratch: Path, *, check: bool) -> None:
        self._open: OpenSource = source.open(scratch)
        self._input = source.input
        self._check = check

    def pack(self, listed: Sequence[ListedSample]) -> Fragment:
        """The fragment of the ``listed`` samples, in their order.

        Raises:
            DataError: one cannot be read now, which may be otherwise later.
        """
        blocks = bytearray()
        samples, rejects = [], []
        for sample in listed:
            try:
                parts = self._load(sample)
            except (OSError, ValueError) as error:
                if _may_pass(error):
                    where = shown(sample.ref.partition("\n")[0])
                    raise DataError(
                        f"sample {sample.key!r} ({where}) cannot be read: {_reason(error)}; finished shards are kept: "
                        "run the same again when it can be"
                    ) from error
                rejects.append(Reject(sample.position, _reason(error)))
                continue
            place = add_sample(blocks, sample.key, sample.extension, parts, sample.label)
            samples.append(Packed(sample.position, place, content_hash(parts)))
        return Fragment(bytes(blocks), samples, rejects, len(listed))

    def _load(self, sample: ListedSample) -> Sequence[bytes]:
        parts = self._open.load(sample.ref)
        if not parts or not all(parts):
            raise ValueError("the file is empty")
        if self._check:
            reason = check_bytes(self._input, parts)
            if reason is not None:
                raise ValueError(reason)
        return parts


_worker: Worker | None = None


def start_process(source: Source, scratch: Path, check: bool) -> None:
    """Make this process's worker: for a pool."""
    global _worker
    _worker = Worker(source, scratch, check=check)


def pack_in_process(listed: Sequence[ListedSample]) -> Fragment:
    """`Worker.pack` of this process's worker."""
    assert _worker is not None
    return _worker.pack(listed)


def _may_pass(error: OSError | ValueError) -> bool:
    """Whether the sample may be read at another time. Decoders raise OSErrors without a number."""
    return isinstance(error, ShardError) or (
        isinstance(error, OSError) and error.errno is not None and error.errno not in _LASTING
    )


def _reason(error: Exception) -> str:
    """An error's first line; a missing file without its path, which the reject's row has."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).splitlines()[0]
