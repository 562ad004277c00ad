from __future__ import annotations

import itertools
import threading
import time

import pytest

from dmlscale.data.prefetch import Prefetcher


def test_results_keep_their_order() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number == 0 else 0)
        return number

    assert list(Prefetcher(slow_first, iter(range(20)), num_threads=4, depth=6)) == list(range(20))


def test_no_more_than_depth_runs_ahead() -> None:
    done: list[int] = []
    prefetcher = Prefetcher(done.append, itertools.count(), num_threads=1, depth=3)
    next(prefetcher)
    time.sleep(0.05)
    prefetcher.close()
    assert done == [0, 1, 2, 3]


def test_exception_surfaces_where_its_result_would() -> None:
    prefetcher = Prefetcher(lambda n: 1 // (2 - n), iter(range(9)), num_threads=2, depth=4)
    assert [next(prefetcher), next(prefetcher)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(prefetcher)
    with pytest.raises(StopIteration):
        next(prefetcher)


def test_close_ends_the_threads() -> None:
    before = threading.active_count()
    prefetcher = Prefetcher(lambda n: n, itertools.count(), num_threads=3, depth=8)
    next(prefetcher)
    assert threading.active_count() > before
    prefetcher.close()
    prefetcher.close()
    assert threading.active_count() == before
