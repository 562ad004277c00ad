"""Compare a packed dataset with its index: every table, every shard, every byte of every sample."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from typing import Any

from dmlscale.data.child_processes import process_pool
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.inspection.problems import Problem
from dmlscale.data.inspection.shard_check import check_shard
from dmlscale.data.inspection.table_check import check_codes, check_tables
from dmlscale.data.prefetch import Prefetcher
from dmlscale.data.storage.cache import ShardCache

_ASKED_AT_ONCE = 16  # servers for the sizes of shards

Progress = Callable[[int, int], None]  # samples whose shards are done, of all


def verify(
    index: Index, *, num_processes: int | None = None, quick: bool = False, progress: Progress | None = None
) -> Iterator[Problem]:
    """Find what is wrong with a dataset.

    The tables first, and whether the files beside them are those that dataset.json tells of. Then every shard is read
    from front to back as a tar file, in constant memory: each sample must lie at its offset under its name, with the
    bytes that were packed and its label in ``.cls``, and the shard must hold nothing else. Shards that were only
    indexed where they are may hold more, and have their labels elsewhere. A shard that is not on this machine is
    fetched, and what is read is the copy.

    Args:
        index: of the whole dataset.
        num_processes: that read shards; None takes one per available core.
        quick: compare tables and the sizes of shards, and open none.
        progress: told of the samples whose shards are done.

    Yields:
        Problems: of the tables, then of the shards in their order.

    Raises:
        DataError: ``num_processes`` is below 1, or a process died.
    """
    if num_processes is not None and num_processes < 1:
        raise DataError(f"num_processes={num_processes}, must be at least 1")
    is_readable = True
    for problem in check_codes(index):
        is_readable = False
        yield problem
    if not is_readable:
        return
    yield from check_tables(index)
    first_rows = index.shards.first_rows
    with closing(_checks(index, num_processes, quick=quick)) as checks:
        try:
            for number, problems in enumerate(checks):
                yield from problems
                if progress is not None:
                    progress(int(first_rows[number + 1]), int(first_rows[-1]))
        except BrokenProcessPool:
            raise DataError("a verifying process died (out of memory?): run again with one process") from None


def _checks(index: Index, num_processes: int | None, *, quick: bool) -> Prefetcher[int, list[Problem]]:
    """What is wrong with each shard, in order."""
    numbers = iter(range(len(index.shards.names)))
    if quick:
        pool: Executor = ThreadPoolExecutor(_ASKED_AT_ONCE)
        return Prefetcher(partial(_check_size, index), numbers, pool=pool, depth=2 * _ASKED_AT_ONCE)
    count = min(num_processes or len(os.sched_getaffinity(0)), len(index.shards.names))
    if count == 1:
        return Prefetcher(partial(check_shard, index), numbers, pool=ThreadPoolExecutor(1), depth=1)
    # Each process opens the index itself, which maps the same files; it is not copied to them.
    place = (index.storage.root, index.storage.options, index.cache)
    return Prefetcher(_check_in_process, numbers, pool=process_pool(count, _start_process, place), depth=2 * count)


_index: Index | None = None


def _start_process(root: str, options: Mapping[str, Any], cache: ShardCache) -> None:
    """Open this process's index: for a pool."""
    global _index
    _index = Index.load(root, options, cache)


def _check_in_process(number: int) -> list[Problem]:
    assert _index is not None
    return check_shard(_index, number)


def _check_size(index: Index, number: int) -> list[Problem]:
    name, expected = index.shards.names[number], int(index.shards.sizes[number])
    try:
        size = index.cache.retry.call(lambda: index.storage.size(name), index.storage.url(name))
    except DataError as error:
        return [Problem(name, "", str(error))]
    if size in (None, expected):  # some servers do not tell
        return []
    return [Problem(name, "", f"has {size:,} bytes, the index says {expected:,}")]
