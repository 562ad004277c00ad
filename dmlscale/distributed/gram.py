"""Similarities among the centers of each class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gram(centers: Tensor) -> Tensor:
    """(c, K, d) -> (c, K, K) dot products, whose gradient keeps its precision under a caller's autocast."""
    result: Tensor = _Gram.apply(centers)
    return result


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, centers: Tensor) -> Tensor:
        ctx.save_for_backward(centers)
        return centers @ centers.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return ((gradients[0] + gradients[0].mT) @ ctx.saved_tensors[0],)
