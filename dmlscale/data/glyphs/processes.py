"""``map`` over processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from dmlscale.data.errors import DataError

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], arguments: Sequence[T], num_processes: int | None) -> Iterator[R]:
    """Results of ``function`` in the order of ``arguments``.

    Args:
        function: importable by name, so that another process finds it.
        arguments: one call each.
        num_processes: 1 stays in this process; None takes one per available core.

    Raises:
        DataError: a process died.
    """
    num_processes = min(num_processes or len(os.sched_getaffinity(0)), len(arguments))
    if num_processes <= 1:
        yield from map(function, arguments)
        return
    # Not forked: this process may hold threads (torch, Ray) whose locks a fork would copy in any state.
    pool = ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(function, arguments)
    except BrokenProcessPool:
        raise DataError(
            "a process that draws characters died (out of memory, or started from a script without "
            "`if __name__ == '__main__':`): set num_processes=1"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
