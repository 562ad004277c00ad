"""The column side of a block: one tensor that several reductions read, with one gradient buffer between them.

A bank of proxies can be most of a rank's memory, so nothing of its size is made here but the gradient itself: rows are
divided by their length and converted a strip at a time, every reduction adds to the same buffer, and the buffer is
turned into the gradient of the raw rows in place, once, when all reductions are done.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed.unit import SHORTEST

# Rows whose gradient is pulled back through the division by their length at a time.
ROWS_AT_A_TIME = 4096


class Columns:
    """Columns of a block, read in strips.

    Args:
        tensor: (n, d) raw columns; the gradient ends up here.
        dtype: to compute in.
        unit: divide each by its length.

    Attributes:
        handle: () zero. An autograd function that reads columns takes it as an input and gives it a zero gradient:
            that is how autograd knows that the buffer is complete.
        raw: (n, d) without gradient.
    """

    def __init__(self, tensor: Tensor, *, dtype: torch.dtype, unit: bool) -> None:
        self.raw = tensor.detach()
        self.dtype, self.unit = dtype, unit
        self._inverse: Tensor | None = None
        if unit:
            lengths = torch.linalg.vector_norm(self.raw, dim=1, dtype=dtype)
            self._inverse = lengths.clamp_min(SHORTEST).reciprocal_()
        self._plain = not unit and tensor.dtype == dtype
        self._buffer: Tensor | None = None
        self._cached: tuple[int, int] | None = None
        self._strip = self.raw[:0]
        handle: Tensor = _Handle.apply(tensor, self)
        self.handle = handle

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def dim(self) -> int:
        """Length of a column: d."""
        return self.raw.shape[1]

    def strip(self, left: int, right: int, depth: int = 1) -> Tensor:
        """(right - left, d) columns, ready to be multiplied; must not be written to.

        With a ``depth`` of K the columns are K for each class, and come center by center instead of class by class.
        """
        if self._plain and depth == 1:
            return self.raw[left:right]
        if self._cached != (left, right):
            strip = self.at(slice(left, right))
            self._strip = strip if depth == 1 else strip.unflatten(0, (-1, depth)).transpose(0, 1).flatten(0, 1)
            self._cached = left, right
        return self._strip

    def add_gradient(self, left: int, right: int, weights: Tensor, rows: Tensor, depth: int = 1) -> None:
        """Adds ``weights^T rows`` to the gradient of a strip: weights (r, right - left), rows (r, d)."""
        part = self.gradient()[left:right]
        if depth == 1:
            part.addmm_(weights.T, rows)
        else:
            by_class = part.unflatten(0, (-1, depth))
            by_class += (weights.T @ rows).unflatten(0, (depth, -1)).transpose(0, 1)

    def at(self, index: Tensor | slice) -> Tensor:
        """Columns at positions, ready to be multiplied, without gradient: (..., d)."""
        part = self.raw[index].to(self.dtype)
        return part if self._inverse is None else part * self._inverse[index].unsqueeze(-1)

    def squared_lengths(self) -> Tensor:
        """(n,) squared lengths of columns that are not of length one."""
        return self.raw.to(self.dtype).square().sum(1)

    def take(self, index: Tensor) -> Tensor:
        """(m, d) the columns at ``index`` (m,), with gradient."""
        taken: Tensor = _Take.apply(self.handle, self, index)
        return taken

    def gradient(self) -> Tensor:
        """(n, d) the shared buffer: the gradient by the columns as `strip` gives them."""
        if self._buffer is None:
            self._buffer = torch.zeros_like(self.raw, dtype=self.dtype)
        return self._buffer

    def collect(self) -> Tensor:
        """The buffer as the gradient of the raw columns; it starts anew afterwards."""
        total, self._buffer = self.gradient(), None
        if self._inverse is not None:
            for start in range(0, len(total), ROWS_AT_A_TIME):
                part = slice(start, start + ROWS_AT_A_TIME)
                unit, inverse, gradient = self.at(part), self._inverse[part], total[part]
                along = torch.linalg.vecdot(gradient, unit)
                # A column too short to have a direction is only scaled.
                along *= inverse < 1 / SHORTEST
                gradient.addcmul_(along[:, None], unit, value=-1).mul_(inverse[:, None])
        return total.to(self.raw.dtype)


class _Handle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, columns: Columns) -> Tensor:
        ctx.columns = columns
        return tensor.new_zeros((), dtype=columns.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # A caller's autocast may span the backward pass.
        with torch.autocast(gradients[0].device.type, enabled=False):
            return ctx.columns.collect(), None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, handle: Tensor, columns: Columns, index: Tensor) -> Tensor:
        ctx.columns = columns
        ctx.save_for_backward(index)
        return columns.at(index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        ctx.columns.gradient().index_add_(0, index, gradients[0])
        return gradients[0].new_zeros(()), None, None
