"""Run jobs ahead of their consumer, on threads or processes, and hand over the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Prefetcher(Generic[T, R]):
    """Iterator over ``function(argument)``, computed ahead; an exception appears where its result would.

    Owns its pool; ``close`` ends it, as does the end of the arguments.

    Args:
        function: the job.
        arguments: taken lazily, so they may be endless.
        pool: that runs the jobs.
        depth: results that are ready or under way beyond the one asked for.
    """

    def __init__(self, function: Callable[[T], R], arguments: Iterator[T], *, pool: Executor, depth: int) -> None:
        self._function = function
        self._arguments = arguments
        self._pool = pool
        self._pending: deque[Future[R]] = deque()
        self._submit(depth)

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        if not self._pending:
            self.close()
            raise StopIteration
        future = self._pending.popleft()
        self._submit(1)
        try:
            return future.result()
        except BaseException:
            self.close()
            raise

    def _submit(self, count: int) -> None:
        for argument in islice(self._arguments, count):
            self._pending.append(self._pool.submit(self._function, argument))

    def close(self) -> None:
        """Drop what is not begun and wait for what is; may be called twice."""
        self._arguments = iter(())
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
