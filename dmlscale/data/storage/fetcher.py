"""Shards fetched before they are needed."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from dmlscale.data.errors import DataError
from dmlscale.data.storage.cache import CacheFullError, ShardCache
from dmlscale.data.storage.storage import Storage
from dmlscale.data.storage.transfer_errors import TransferStopped

logger = logging.getLogger("dmlscale.data")


class Shard(NamedTuple):
    """A file that will be needed."""

    name: str
    size: int | None = None  # bytes, if known


class ShardFetcher:
    """Downloads the shards of a list in its order, on threads, and keeps them in the cache while they are listed.

    Shards that another process is downloading are passed over, as are those that fail: whoever needs them fetches
    them with ``ShardCache.fetch``, which waits, or tells what is wrong. When the cache has no more room that
    nobody uses, the rest of the list is dropped.

    Owns its threads and an open file per shard that it keeps; ``close`` it.

    Args:
        cache: where to.
        storage: where from. For files of this machine there is nothing to do.
        num_threads: downloads at the same time.
        depth: keep no more than the first so many of a list; each costs an open file.
    """

    def __init__(self, cache: ShardCache, storage: Storage, *, num_threads: int = 2, depth: int = 64) -> None:
        self._cache = cache
        self._storage = storage
        self._depth = depth
        self._changed = threading.Condition()
        self._listed: set[Shard] = set()
        self._waiting: deque[Shard] = deque()
        self._busy: set[Shard] = set()
        self._reserving: Shard | None = None  # one at a time: the first in the list must find room first
        self._kept: dict[Shard, BinaryIO] = {}
        self._stop = threading.Event()
        # Daemons: a server that hangs must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._run, name=f"dmlscale-fetch-{i}", daemon=True) for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def request(self, shards: Sequence[Shard]) -> None:
        """Fetch these next, in this order, and no longer those of the list before; returns at once."""
        wanted = [shard for shard in shards[: self._depth] if not self._storage.holds_locally(shard.name)]
        with self._changed:
            if self._stop.is_set():
                raise ValueError("this ShardFetcher is closed")
            self._listed = set(wanted)
            for shard in self._kept.keys() - self._listed:
                self._kept.pop(shard).close()
            self._waiting = deque(
                shard for shard in dict.fromkeys(wanted) if shard not in self._kept and shard not in self._busy
            )
            self._changed.notify_all()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until nothing is left to do; whether that was so within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._busy), timeout_seconds)

    def close(self) -> None:
        """End the threads, which takes no longer than a silent server is waited for; may be called twice."""
        with self._changed:
            self._stop.set()
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        with self._changed:
            while self._kept:
                self._kept.popitem()[1].close()

    def _run(self) -> None:
        while (shard := self._next()) is not None:
            file = self._fetch(shard)
            self._reserved(shard)
            with self._changed:
                self._busy.discard(shard)
                if file is not None and shard in self._listed:
                    self._kept[shard] = file
                elif file is not None:
                    file.close()
                self._changed.notify_all()

    def _next(self) -> Shard | None:
        """The next shard to fetch, waited for; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop.is_set() or (self._waiting and self._reserving is None))
            if self._stop.is_set():
                return None
            shard = self._reserving = self._waiting.popleft()
            self._busy.add(shard)
            return shard

    def _reserved(self, shard: Shard) -> None:
        """There is room for this shard, or nothing will come of it: the next may be looked at."""
        with self._changed:
            if self._reserving is shard:
                self._reserving = None
                self._changed.notify_all()

    def _fetch(self, shard: Shard) -> BinaryIO | None:
        try:
            return self._cache.open_ahead(
                self._storage, shard.name, shard.size, stop=self._stop, reserved=lambda: self._reserved(shard)
            )
        except CacheFullError:
            with self._changed:
                self._waiting.clear()
        except TransferStopped:
            pass
        except DataError as error:
            logger.info("not fetched ahead: %s", error)
        except Exception:  # a thread that died would leave the training to fetch everything itself, without a word
            logger.exception("fetching %s ahead failed", shard.name)
        return None
