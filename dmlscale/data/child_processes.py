"""Pools of processes that do not outlive the process that made them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from threading import Thread
from typing import Any


def process_pool(
    count: int, start: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A pool whose processes end with this one, however it ends.

    Args:
        count: of processes.
        start: called in each of them first.
        arguments: of ``start``.
    """
    # Not forked: this process may hold threads (torch, Ray) whose locks a fork would copy in any state.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _begin, (start, arguments))


def _begin(start: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    """A pool's process would otherwise wait for work for ever when its parent is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
