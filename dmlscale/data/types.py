"""The values that travel through the data room."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Sample(NamedTuple):
    """One decoded sample."""

    key: str
    image: Tensor  # (channels, height, width) uint8 of a picture; see decode.find_decoder for other inputs
    label: int  # global class id


class Batch(NamedTuple):
    """One rank's part of a global batch."""

    images: Tensor  # (b, channels, height, width) float32; (b, v, channels, height, width) of views, (b, d) of vectors
    labels: Tensor  # (b,) int64, global class ids
    ids: Tensor  # (b,) int64, row numbers in the index: the same for any number of ranks
    stream_sizes: Mapping[int, int]  # samples of each canonical stream, in the order of the batch

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        images, labels, ids = (t.to(device, non_blocking=True) for t in (self.images, self.labels, self.ids))
        return Batch(images, labels, ids, self.stream_sizes)
