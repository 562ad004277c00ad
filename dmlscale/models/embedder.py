"""images -> embeddings: a backbone and a linear head."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dmlscale.models.checkpointing import buffers_kept

ViewPooling = Literal["max", "mean"]


class Embedder(nn.Module):
    """Backbone and embedding head.

    Args:
        backbone: (b, channels, h, w) -> (b, features), or (b, ...) -> (b, features) for other samples.
        num_features: of the backbone.
        embedding_dim: d.
        normalize: divide embeddings by their length. Losses on the sphere do so themselves; losses on Euclidean
            distance as published (lifted structure, batch-hard triplets) want it off.
        channels_last: memory order of images and convolutions; faster for most networks, on CPU by a quarter and
            more, with the same results up to rounding.
        view_pooling: what becomes of the features of an object's views: the largest of each (Su et al. 2015, MVCNN) or
            their mean.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        embedding_dim: int,
        *,
        normalize: bool = True,
        channels_last: bool = True,
        view_pooling: ViewPooling = "max",
    ) -> None:
        super().__init__()
        self._memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = backbone.to(memory_format=self._memory_format)
        self.head = nn.Linear(num_features, embedding_dim)
        self.normalize = normalize
        self._view_pooling = view_pooling
        # Such layers add up the samples of all ranks, and know what to do with none.
        self._is_synchronized = any(isinstance(module, nn.SyncBatchNorm) for module in backbone.modules())

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, h, w), objects of v views (b, v, channels, h, w), or vectors (b, n) -> (b, d); b may be 0."""
        # Not len(images): an exported network would be for that number of images alone.
        if images.shape[0] == 0 and not self._is_synchronized:
            return self._of_nothing(images)
        embeddings: Tensor = self.head(self._features(images))
        return normalize(embeddings, dim=1) if self.normalize else embeddings

    def _of_nothing(self, images: Tensor) -> Tensor:
        """(0, ...) -> (0, d) by a pass of two samples of zeros, as some networks refuse none.

        All layers are passed, so that ranks which meet in each of them meet, and all gradients are zero. Running
        statistics stay as they are.
        """
        with buffers_kept(self):
            return self.forward(images.new_zeros(2, *images.shape[1:]))[:0]

    def _features(self, images: Tensor) -> Tensor:
        if images.dim() == 5:  # the views of all objects pass through the backbone as one batch
            views = self._features(images.flatten(0, 1)).unflatten(0, images.shape[:2])
            # amax shares the gradient among equal views, so their order does not matter.
            return views.amax(dim=1) if self._view_pooling == "max" else views.mean(dim=1)
        if images.dim() == 4:
            images = images.contiguous(memory_format=self._memory_format)
        features: Tensor = self.backbone(images)
        return features
