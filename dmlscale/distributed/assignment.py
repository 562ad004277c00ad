"""K centers per class, seen as one similarity per class (SoftTriple, eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SoftAssignment:
    """``S = sum_k softmax_k(s_k / temperature) s_k`` over the K centers of each class.

    Args:
        centers_per_class: K.
        temperature: softness of the choice, in units of cosine.
    """

    centers_per_class: int
    temperature: float

    def _weights(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        each = raw.unflatten(1, (-1, self.centers_per_class))  # (r, c, K)
        return each, torch.softmax(each / self.temperature, 2)

    def assign(self, raw: Tensor) -> Tensor:
        """(r, c * K) similarities to centers -> (r, c) similarities to classes."""
        each, weights = self._weights(raw)
        return weights.mul_(each).sum(2)

    def pull_back(self, raw: Tensor, assigned: Tensor, gradient: Tensor) -> Tensor:
        """Gradient by the assigned (r, c) -> by the raw similarities (r, c * K)."""
        each, weights = self._weights(raw)
        # dS/ds_k = w_k (1 + (s_k - S) / temperature)
        slope = (each - assigned.unsqueeze(2)).div_(self.temperature).add_(1)
        return weights.mul_(slope).mul_(gradient.unsqueeze(2)).flatten(1)
