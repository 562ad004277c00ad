"""A sample's content as one number: finds duplicates, and bytes that have changed since they were packed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def content_hash(parts: Iterable[bytes | bytearray | memoryview]) -> int:
    """64 bits of BLAKE2b over the files of a sample, one after the other.

    Two different samples of 10^8 share it with a probability of 3 in 10,000.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little")
