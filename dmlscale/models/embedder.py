"""images -> embeddings: a backbone and a linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class Embedder(nn.Module):
    """Backbone and embedding head.

    Args:
        backbone: (b, channels, h, w) -> (b, features).
        num_features: of the backbone.
        embedding_dim: d.
        normalize: divide embeddings by their length. Losses on the sphere do so themselves; losses on Euclidean
            distance as published (lifted structure, batch-hard triplets) want it off.
        channels_last: memory order of images and convolutions; faster for most networks, on CPU by a quarter and
            more, with the same results up to rounding.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        embedding_dim: int,
        *,
        normalize: bool = True,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = backbone.to(memory_format=self._memory_format)
        self.head = nn.Linear(num_features, embedding_dim)
        self.normalize = normalize

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, h, w) -> (b, d)."""
        embeddings: Tensor = self.head(self.backbone(images.contiguous(memory_format=self._memory_format)))
        return normalize(embeddings, dim=1) if self.normalize else embeddings
