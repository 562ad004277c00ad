"""Counts the bytes that torch.distributed is really given, by wrapping its functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch import Tensor

# By their names before and since torch 2.15.
_COLLECTIVES = {
    "all_reduce": "all_reduce",
    "broadcast": "broadcast",
    "reduce": "reduce",
    "all_to_all_single": "all_to_all",
    "all_gather_into_tensor": "all_gather",
    "all_gather_single": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
}


@contextmanager
def counted_bytes() -> Iterator[Counter[str]]:
    """Bytes of the whole buffers by collective of this rank, filled while the context is open."""
    found: Counter[str] = Counter()
    with ExitStack() as stack:
        for name, collective in _COLLECTIVES.items():
            if hasattr(dist, name):
                stack.enter_context(patch.object(dist, name, _counting(getattr(dist, name), collective, found)))
        yield found


def _counting(function: Callable[..., Any], collective: str, found: Counter[str]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        # The whole is what an all-gather ends with and what a reduce-scatter begins with: the larger of two.
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        found[collective] += max(tensor.numel() * tensor.element_size() for tensor in tensors)
        return function(*args, **kwargs)

    return wrapped
