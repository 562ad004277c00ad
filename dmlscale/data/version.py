"""Tells datasets apart that may follow each other at one place."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.layout import CLASSES_FILE, SHARDS_FILE


def dataset_version(
    folder: Path, hashes: NDArray[np.uint64], splits: NDArray[np.int8], labels: NDArray[np.int32]
) -> str:
    """The ``version`` in dataset.json; it also differs where labels or names alone do.

    Args:
        folder: that holds the tables of classes and shards.
        hashes: (n,) of the contents, by row of the index.
        splits: (n,) positions in the names of the splits.
        labels: (n,)
    """
    digest = hashlib.blake2b(digest_size=16)
    for column in (hashes, splits, labels):
        digest.update(np.ascontiguousarray(column).data)
    for name in (CLASSES_FILE, SHARDS_FILE):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def content_digest(hashes: NDArray[np.uint64]) -> str:
    """The ``content_hash`` in dataset.json: of the contents (n,) alone, in the order of the index."""
    return hashlib.blake2b(np.ascontiguousarray(hashes).data, digest_size=16).hexdigest()
