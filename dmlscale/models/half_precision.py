"""A network whose every pass is in half precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HalfPrecision(nn.Module):
    """Runs a network under bf16 autocast, also where its caller knows nothing of precision.

    Args:
        net: images -> embeddings.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """What the network gives."""
        with torch.autocast(images.device.type, torch.bfloat16):
            embeddings: Tensor = self.net(images)
        return embeddings
