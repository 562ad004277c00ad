"""Activation checkpointing: a block keeps its input alone and computes the rest again in the backward pass.

Dropout draws the same again, and running statistics move in the forward pass only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(blocks: Iterable[nn.Module]) -> None:
    """Changes the blocks in place; their parameters keep their names, and hooks run once.

    Compile them before, and shard them in any order: what is fetched for a block's backward pass is there when the
    block is computed again.
    """
    for block in blocks:
        _recompute(block)


def _recompute(block: nn.Module) -> None:
    forward = block.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), buffers_kept(block)

    def recomputed(*args: Any, **options: Any) -> Any:
        # The caller may lengthen a list before the block is computed again (DenseNet's features do).
        args = tuple(list(arg) if isinstance(arg, list) else arg for arg in args)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **options)

    vars(block)["forward"] = recomputed  # found before the method of the class


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards running statistics are what they were before."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            # Not through autograd, which would refuse the backward pass: that does not read statistics that moved.
            buffer.data.copy_(value)
