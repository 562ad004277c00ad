"""Decoded samples of every kind, drawn anew at each call."""

from __future__ import annotations

import torch
from torch import Tensor

GENERATOR = torch.Generator().manual_seed(0)


def pictures(count: int, channels: int = 3, height: int = 40, width: int = 50) -> list[Tensor]:
    shape = (channels, height, width)
    return [torch.randint(0, 256, shape, generator=GENERATOR, dtype=torch.uint8) for _ in range(count)]


def floats(count: int, *shape: int) -> list[Tensor]:
    return [torch.randn(shape, generator=GENERATOR) * 3 - 5 for _ in range(count)]
