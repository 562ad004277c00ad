"""What evaluation asks of the ranks: two collectives, handed in by the caller, so that one process needs none."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Gather = Callable[[Tensor], Tensor]
"""(n_r, ...) uneven over ranks -> (sum of n_r, ...) in rank order, identical on every rank."""
AllSum = Callable[[Tensor], Tensor]
"""A tensor of one shape -> its sum over ranks, identical on every rank."""


def alone(tensor: Tensor) -> Tensor:
    """Gather and sum of one process."""
    return tensor
