"""The column side of a block: one tensor that several reductions read, with one gradient buffer between them.

A bank of proxies can be most of a rank's memory, so nothing of its size is made here but the gradient itself: rows are
divided by their length, converted and put in order a strip at a time, every reduction adds to the same buffer, and the
buffer is turned into the gradient of the raw rows in place, once, when all reductions are done.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dmlscale.distributed.unit import SHORTEST

# Rows that are looked at together where all of them are swept; so few leave a GPU idle: there, half a tile of numbers.
ROWS_AT_A_TIME = 4096
NUMBERS_ON_GPU = 2**24


class Columns:
    """Columns of a block, read in strips.

    Args:
        tensor: (n, d) raw columns; the gradient ends up here.
        dtype: to compute in.
        unit: divide each by its length.
        order: (n,) the columns are ``tensor[order]``, which is never formed; such columns get no gradient.

    Attributes:
        handle: () zero. An autograd function that reads columns takes it as an input and gives it a zero gradient:
            that is how autograd knows that the buffer is complete.
    """

    def __init__(self, tensor: Tensor, *, dtype: torch.dtype, unit: bool, order: Tensor | None = None) -> None:
        self._store = _Store(tensor.detach(), dtype, unit, order)
        handle: Tensor = _Handle.apply(tensor if order is None else tensor.detach(), self._store)
        self.handle = handle
        self._plain = not unit and order is None and tensor.dtype == dtype
        self._cached: tuple[int, int, int] | None = None
        self._strip = self._store.raw[:0]
        self._squared_lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self._store.raw)

    @property
    def raw(self) -> Tensor:
        """(n, d) as they were given, without gradient."""
        return self._store.raw

    def strip(self, left: int, right: int, depth: int = 1) -> Tensor:
        """(right - left, d) columns, ready to be multiplied; must not be written to.

        With a ``depth`` of K the columns are K for each class, and come center by center instead of class by class.
        """
        if self._plain and depth == 1:
            return self.raw[left:right]
        if self._cached != (left, right, depth):
            strip = self.at(slice(left, right))
            self._strip = strip if depth == 1 else strip.unflatten(0, (-1, depth)).transpose(0, 1).flatten(0, 1)
            self._cached = left, right, depth
        return self._strip

    def at(self, index: Tensor | slice) -> Tensor:
        """Columns at positions, ready to be multiplied, without gradient: (..., d)."""
        return self._store.at(index)

    def squared_lengths(self) -> Tensor:
        """(n,) squared lengths of the columns."""
        if self._squared_lengths is None:
            parts = [self.at(part).square().sum(1) for part in row_slices(self.raw)]
            self._squared_lengths = torch.cat(parts) if parts else self.raw.new_zeros(0, dtype=self._store.dtype)
        return self._squared_lengths

    def take(self, index: Tensor) -> Tensor:
        """(m, d) the columns at ``index`` (m,), with gradient."""
        taken: Tensor = _Take.apply(self.handle, self, index)
        return taken

    def gradient(self) -> Tensor | None:
        """(n, d) the shared buffer: the gradient by the columns as `strip` gives them; None where nobody wants it.

        Asked for inside a backward pass, whose caller may want the gradient by other tensors only.
        """
        node = self.handle.grad_fn
        if node is None or not torch._C._will_engine_execute_node(node):  # what torch's own multi-grad hooks ask
            return None
        return self._store.buffer()

    def add_gradient(
        self, gradient: Tensor | None, left: int, right: int, weights: Tensor, rows: Tensor, depth: int = 1
    ) -> None:
        """Adds ``weights^T rows`` to a strip of the buffer, if there is one.

        Args:
            gradient: from `gradient`.
            left: first column of the strip.
            right: end of the strip.
            weights: (r, right - left).
            rows: (r, d).
            depth: see `strip`.
        """
        if gradient is None:
            return
        part = gradient[left:right]
        if depth == 1:
            part.addmm_(weights.T, rows)
        else:
            by_class = part.unflatten(0, (-1, depth))
            by_class += (weights.T @ rows).unflatten(0, (depth, -1)).transpose(0, 1)


class _Store:
    """What the handle's node holds: it must not reach the handle, or the two would keep each other alive."""

    def __init__(self, raw: Tensor, dtype: torch.dtype, unit: bool, order: Tensor | None) -> None:
        self.raw, self.dtype, self._order = raw, dtype, order
        self._inverse: Tensor | None = None
        if unit:
            lengths = [torch.linalg.vector_norm(self.at(part), dim=1) for part in row_slices(raw)]
            whole = torch.cat(lengths) if lengths else raw.new_zeros(0, dtype=dtype)
            self._inverse = whole.clamp_min(SHORTEST).reciprocal_()
        self._buffer: Tensor | None = None

    def at(self, index: Tensor | slice) -> Tensor:
        part = self.raw[index if self._order is None else self._order[index]].to(self.dtype)
        return part if self._inverse is None else part * self._inverse[index].unsqueeze(-1)

    def buffer(self) -> Tensor:
        if self._buffer is None:
            self._buffer = torch.zeros_like(self.raw, dtype=self.dtype)
        return self._buffer

    def collect(self) -> Tensor:
        """The buffer as the gradient of the raw columns; it starts anew afterwards."""
        total, self._buffer = self.buffer(), None
        if self._inverse is not None:
            for part in row_slices(total):
                unit, inverse, gradient = self.at(part), self._inverse[part], total[part]
                along = torch.linalg.vecdot(gradient, unit)
                # A column too short to have a direction is only scaled.
                along *= inverse < 1 / SHORTEST
                gradient.addcmul_(along[:, None], unit, value=-1).mul_(inverse[:, None])
        return total.to(self.raw.dtype)


def row_slices(matrix: Tensor) -> list[slice]:
    """Slices of the rows of a matrix (n, d), as large as its device handles well."""
    length, dim = matrix.shape
    step = ROWS_AT_A_TIME if matrix.device.type == "cpu" else max(ROWS_AT_A_TIME, NUMBERS_ON_GPU // max(1, dim))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


class _Handle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, store: _Store) -> Tensor:
        ctx.store = store
        ctx.save_for_backward(tensor)  # torch then notices if it is written to before the backward pass
        return tensor.new_zeros((), dtype=store.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        assert ctx.saved_tensors
        # A caller's autocast may span the backward pass.
        with torch.autocast(gradients[0].device.type, enabled=False):
            return ctx.store.collect(), None


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
        buffer = ctx.columns.gradient()
        if buffer is not None:
            buffer.index_add_(0, index, gradients[0])
        return gradients[0].new_zeros(()), None, None
