"""images -> embeddings: a backbone and a linear head."""

from __future__ import annotations

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
    """

    def __init__(
        self, backbone: nn.Module, num_features: int, embedding_dim: int, *, normalize: bool = True
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(num_features, embedding_dim)
        self.normalize = normalize

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, h, w) -> (b, d)."""
        embeddings: Tensor = self.head(self.backbone(images))
        return normalize(embeddings, dim=1) if self.normalize else embeddings
