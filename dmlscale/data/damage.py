"""Shards of this machine that are missing or too short, found before any work is spent."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dmlscale.data.index import Index


class DamagedShard(NamedTuple):
    """A shard of which samples cannot be read."""

    path: str
    what: str
    num_lost: int  # samples of the split


def damaged_shards(split: Index) -> list[DamagedShard]:
    """The shards of a split whose files are gone or end too early; those of other machines are not asked for."""
    found = []
    for number in split.used_shards.tolist():
        name = split.shards.names[number]
        if not split.storage.holds_locally(name):
            continue
        path = split.storage.local_path(name)
        size = path.stat().st_size if path.is_file() else -1
        if size >= split.shards.sizes[number]:
            continue
        rows = split.shards.first_rows[number : number + 2]
        shard = slice(*rows.tolist())
        ends = split.columns.offsets[shard] + split.columns.sizes[shard]
        is_lost = ends > size
        if not isinstance(split.rows, range):
            is_lost &= np.isin(np.arange(*rows.tolist()), split.rows)
        what = {-1: "is missing", 0: "is empty (0 bytes)"}.get(
            size, f"is truncated ({size:,} bytes, should be {int(split.shards.sizes[number]):,})"
        )
        found.append(DamagedShard(str(path), what, int(is_lost.sum())))
    return found
