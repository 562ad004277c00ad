"""Which shards a stream will need next, told to the threads that fetch them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.index import Index
from dmlscale.data.planning.plan import EpochPlan
from dmlscale.data.planning.windows import WindowedPlan
from dmlscale.data.storage.fetcher import Shard, ShardFetcher

_SHARDS_AHEAD = 4  # of a pass from front to back
_MOST_KEPT = 512  # shards; each costs an open file


class FetchAhead:
    """Keeps the shards of the window at hand and of the next in the cache; does nothing for shards on this machine.

    Every process of a machine fetches for all: each begins at another place of the list and passes over what others
    are fetching.

    Owns threads; ``close`` it.

    Args:
        index: the split.
        rank: this rank.
        num_ranks: number of ranks.
        keep_only: called with the shards that are in use now and next, when that changes.
    """

    def __init__(self, index: Index, rank: int, num_ranks: int, keep_only: Callable[[Collection[int]], None]) -> None:
        self._index = index
        self._keep_only = keep_only
        self._share = rank / num_ranks
        self._is_needed = any(not index.storage.holds_locally(name) for name in index.shards.names)
        self._lock = Lock()
        self._fetcher: ShardFetcher | None = None
        self._asked: set[object] = set()

    def at(self, plan: EpochPlan, epoch: int, step: int) -> None:
        """All batches before ``step`` of an epoch's plan are made."""
        if not self._is_needed:
            return
        if not isinstance(plan, WindowedPlan):
            self._request("all", self._rotated(self._index.used_shards))
            return
        window = plan.window_of(step)
        numbers = self._rotated(plan.shards_of_window(window))
        if window + 1 < plan.num_windows:
            numbers = np.concatenate([numbers, self._rotated(plan.shards_of_window(window + 1))])
        self._request((epoch, window), numbers)

    def at_rows(self, row_ids: NDArray[np.int64]) -> None:
        """A pass from front to back has come to these rows."""
        if self._is_needed:
            first = int(self._index.columns.shards[row_ids[0]])
            used = self._index.used_shards
            self._request(first, used[np.searchsorted(used, first) :][:_SHARDS_AHEAD])

    def close(self) -> None:
        """End the threads; asking again starts them anew."""
        with self._lock:
            fetcher, self._fetcher = self._fetcher, None
            self._asked.clear()
        if fetcher is not None:
            fetcher.close()

    def _rotated(self, shards: NDArray) -> NDArray:
        return np.roll(shards, -int(self._share * len(shards)))

    def _request(self, asked: object, shards: NDArray) -> None:
        with self._lock:
            if asked in self._asked:
                return
            self._asked.add(asked)
            if self._fetcher is None:
                self._fetcher = ShardFetcher(self._index.cache, self._index.storage, depth=_MOST_KEPT)
            table = self._index.shards
            self._keep_only(shards.tolist())
            self._fetcher.request([Shard(table.names[n], int(table.sizes[n])) for n in shards.tolist()])
