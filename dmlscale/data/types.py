"""The values that travel through the data room."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """One decoded sample."""

    key: str
    image: Tensor  # (channels, height, width) uint8
    label: int  # global class id


class Batch(NamedTuple):
    """One rank's part of a global batch."""

    images: Tensor  # (b, channels, height, width) float32
    labels: Tensor  # (b,) int64, global class ids
    ids: Tensor  # (b,) int64, row numbers in the index: the same for any number of ranks

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))
