"""Rows of length one, with a backward pass that makes one temporary: a bank of proxies can be large."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORTEST = 1e-12  # as torch.nn.functional.normalize: shorter rows are divided by this


def unit_rows(rows: Tensor) -> Tensor:
    """``rows`` (..., d) divided by their length."""
    result: Tensor = _UnitRows.apply(rows)
    return result


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        unit = rows / length.clamp_min(SHORTEST)
        ctx.save_for_backward(unit, length)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor]:
        unit, length = ctx.saved_tensors
        gradient = gradients[0]
        # A caller's autocast may span the backward pass.
        with torch.autocast(gradient.device.type, enabled=False):
            along = torch.linalg.vecdot(gradient, unit).unsqueeze(-1)
        # A row too short to have a direction is only scaled.
        along *= length > SHORTEST
        return (torch.addcmul(gradient, along, unit, value=-1).div_(length.clamp_min(SHORTEST)),)
