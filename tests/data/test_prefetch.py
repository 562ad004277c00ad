from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dmlscale.data.prefetch import Prefetcher


def on_threads(
    function: Callable[[int], Any], arguments: Iterator[int], *, num_threads: int, depth: int
) -> Prefetcher[int, Any]:
    return Prefetcher(function, arguments, pool=ThreadPoolExecutor(num_threads), depth=depth)


def test_results_keep_their_order() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number

    assert list(on_threads(slow_first, iter(range(20)), num_threads=4, depth=6)) == list(range(20))


def test_no_more_than_depth_runs_ahead() -> None:
    done: list[int] = []
    prefetcher = on_threads(done.append, itertools.count(), num_threads=1, depth=3)
    next(prefetcher)
    end = time.monotonic() + 60
    while len(done) < 4 and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.05)  # in which a fifth would be begun
    prefetcher.close()
    assert done == [0, 1, 2, 3]


def test_exception_surfaces_where_its_result_would() -> None:
    prefetcher = on_threads(lambda n: 1 // (2 - n), iter(range(9)), num_threads=2, depth=4)
    assert [next(prefetcher), next(prefetcher)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(prefetcher)
    with pytest.raises(StopIteration):
        next(prefetcher)


@pytest.mark.parametrize("does_end", [True, False])
def test_threads_end_with_the_arguments_or_when_closed(does_end: bool) -> None:
    before = set(threading.enumerate())
    prefetcher = on_threads(lambda n: n, iter(range(9)) if does_end else itertools.count(), num_threads=3, depth=8)
    next(prefetcher)
    started = set(threading.enumerate()) - before
    assert started
    if does_end:
        assert list(prefetcher) == list(range(1, 9))
    else:
        prefetcher.close()
        prefetcher.close()
    assert not any(thread.is_alive() for thread in started)
