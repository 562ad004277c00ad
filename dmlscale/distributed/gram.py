"""Similarities among the centers of each class: C blocks of K x K, a few classes at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed.columns import Columns

# Of the K x K blocks on CPU; of these or their centers, whichever are more, on a GPU.
ENTRIES_ON_CPU, ENTRIES_ON_GPU = 2**17, 2**24
Value = Callable[[Tensor], Tensor]


def sum_of_centers(columns: Columns, depth: int, value: Value) -> Tensor:
    """Sum over classes of ``value((classes, K, K) dot products) -> (classes,)`` -> (); differentiable.

    Args:
        columns: (c * K, d) centers.
        depth: K.
        value: of the dot products among each class's centers.
    """
    result: Tensor = _SumOfCenters.apply(columns.handle, columns, depth, value)
    return result


def _parts(columns: Columns, depth: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows of some classes, and their centers (classes, K, d)."""
    if columns.raw.device.type == "cpu":
        step = max(1, ENTRIES_ON_CPU // depth**2)
    else:
        step = max(1, ENTRIES_ON_GPU // (depth * max(depth, columns.raw.shape[1])))
    for first in range(0, len(columns) // depth, step):
        rows = slice(first * depth, (first + step) * depth)
        yield rows, columns.at(rows).unflatten(0, (-1, depth))


class _SumOfCenters(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handle: Tensor, columns: Columns, depth: int, value: Value) -> Tensor:
        ctx.setting = columns, depth, value
        total = handle.new_zeros(())
        for _, centers in _parts(columns, depth):
            total += value(centers @ centers.mT).sum()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        columns, depth, value = ctx.setting
        buffer = columns.gradient()
        # A caller's autocast may span the backward pass.
        with torch.autocast(gradients[0].device.type, enabled=False):
            for rows, centers in _parts(columns, depth) if buffer is not None else ():
                with torch.enable_grad():
                    gram = (centers @ centers.mT).requires_grad_()
                    (by_gram,) = torch.autograd.grad(value(gram).sum(), gram)
                by_center = (by_gram + by_gram.mT) @ centers
                buffer[rows] += by_center.flatten(0, 1) * gradients[0]
        return gradients[0].new_zeros(()), None, None, None
